"""A backend without models, for tests: plain arithmetic on its inputs and on what each slot has been fed so far.

Every output depends on the whole history of its slot in order. A frame that is dropped, repeated, reordered or sent to
another conversation changes everything after it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from gateway.engine.backend import BatchRejected, Floats, Prefilled, TemporalOutput, Tokens, Wait
from gateway.engine.prefix import PromptPrefix
from gateway.errors import EngineError, EngineUnavailable
from gateway.manifest import Manifest

_PRIME = 2_147_483_647


class Sampler(NamedTuple):
    """A sampler that a call was given."""

    seed: int
    position: int
    top_k: int
    temperature: float


class FakeBackend:
    """Stands in for Triton.

    down: every call fails. mute: the agent is silent. floor: level of the noise in its audio. delay: seconds that each
    call but `open` takes. remembers: how many prompts are recorded. reject: slots whose frames are invalid, so that
    their batch is rejected. calls: stage and slots of each call.
    """

    def __init__(self, manifest: Manifest, delay: float = 0.0) -> None:
        self.manifest = manifest
        self.delay = delay
        self.down = False
        self.mute = False
        self.floor = 0.0
        self.opened = 0
        self.closed = 0
        self.reject: set[int] = set()
        self.calls: list[tuple[str, list[int]]] = []
        self.prefills: list[PromptPrefix] = []
        self.samplers: list[tuple[str, Sampler]] = []
        self.remembers = 100
        self.known: deque[bytes] = deque()
        self._states: dict[int, _SlotState] = {}

    async def open(self, slot: int) -> None:
        """Counted in `opened`; its release in `closed`."""
        if slot not in self._states:
            self.opened += 1
        self._states[slot] = _SlotState()
        self.calls.append(("open", [slot]))
        if self.down:
            raise EngineUnavailable("the fake backend is down")

    async def encode(self, slots: Tokens, pcm: Floats) -> Tokens:
        """Codes that depend on every sample so far."""
        states = await self._batch("encode", slots)
        for state, frame in zip(states, pcm, strict=True):
            state.encoder = _mix(state.encoder, float(np.abs(frame).sum()))
        return self._codes(state.encoder for state in states)

    async def step(self, slots: Tokens, steps: Tokens, sampler: Tokens, temperature: Floats) -> TemporalOutput:
        """Text tokens and hidden vectors that depend on every step so far, and on the sampler."""
        states = await self._batch("step", slots)
        return self._step(states, steps, sampler, temperature)

    async def depformer(self, output: TemporalOutput, sampler: Tokens, temperature: Floats) -> Tokens:
        """No state: only this step's hidden vector, text token and sampler."""
        await self._call("depformer", range(len(sampler)))
        samplers = self._record("audio", sampler, temperature)
        mixed = (
            _mix(int(token), float(hidden[0])) for token, hidden in zip(output.text_tokens, output.hidden, strict=True)
        )
        return self._codes(_sampled(state, sampler) for state, sampler in zip(mixed, samplers, strict=True))

    async def decode(self, slots: Tokens, codes: Tokens) -> Floats:
        """A quiet level that depends on every code so far."""
        states = await self._batch("decode", slots)
        pcm = np.zeros((len(slots), self.manifest.frame_size), np.float32)
        for state, frame, samples in zip(states, codes, pcm, strict=True):
            state.decoder = _mix(state.decoder, float(frame @ np.arange(1, frame.size + 1)))
            samples[:] = 0.0 if self.mute else 0.1 + (state.decoder % 1000) / 2000
            if self.floor:
                samples += self.floor * np.random.default_rng(state.decoder).standard_normal(samples.size)
        return pcm

    async def prefill(
        self, slot: int, prefix: PromptPrefix, sampler: Tokens, temperature: Floats, wait: Wait
    ) -> Prefilled:
        """As if every step had been fed."""
        await wait()
        self.prefills.append(prefix)
        cached = prefix.cacheable if prefix.digest in self.known else 0
        self.known = deque([*self.known, prefix.digest], maxlen=self.remembers)
        (state,) = await self._batch("prefill", [slot])
        for row in prefix.embeddings:
            state.temporal = _mix(state.temporal, float(row.sum()))
        for step in prefix.steps[:-1]:
            state.temporal = _mix(state.temporal, float(step @ np.arange(1, step.size + 1)))
        return Prefilled(self._step([state], prefix.steps[-1:], sampler, temperature), cached)

    async def release(self, slot: int) -> None:
        """Counted in `closed`."""
        if self._states.pop(slot, None) is not None:
            await asyncio.sleep(self.delay)
            self.closed += 1

    async def ready(self) -> bool:
        """Unless `down`."""
        return not self.down

    async def close(self) -> None:
        """There is nothing to close."""

    def _step(self, states: list[_SlotState], steps: Tokens, sampler: Tokens, temperature: Floats) -> TemporalOutput:
        samplers = self._record("text", sampler, temperature)
        hidden = np.zeros((len(states), self.manifest.dim), np.float32)
        tokens = np.full(len(states), self.manifest.text_padding_id, np.int64)
        for row, (state, step, one) in enumerate(zip(states, steps, samplers, strict=True)):
            state.temporal = _mix(state.temporal, float(step @ np.arange(1, step.size + 1)))
            hidden[row] = state.temporal % 4096
            if not self.mute:
                tokens[row] = _sampled(state.temporal, one) % self.manifest.text_card
        return TemporalOutput(hidden, tokens)

    async def _batch(self, stage: str, slots: Tokens | list[int]) -> list[_SlotState]:
        members = [int(slot) for slot in slots]
        if len(set(members)) < len(members):
            raise AssertionError("expected each slot once in a batch")
        await self._call(stage, members)
        if self.reject.intersection(members):
            raise BatchRejected(EngineError("the fake backend rejected the frame"))
        return [self._states[slot] for slot in members]

    async def _call(self, stage: str, slots: list[int] | range) -> None:
        self.calls.append((stage, list(slots)))
        await asyncio.sleep(self.delay)
        if self.down:
            raise EngineUnavailable("the fake backend is down")

    def _record(self, stream: str, sampler: Tokens, temperature: Floats) -> list[Sampler]:
        samplers = [
            Sampler(seed, position, top_k, round(float(t), 6))
            for (seed, position, top_k), t in zip(sampler.tolist(), temperature[:, 0], strict=True)
        ]
        self.samplers += [(stream, sampler) for sampler in samplers]
        return samplers

    def _codes(self, states: Iterable[int]) -> Tokens:
        codebooks, card = self.manifest.codebooks, self.manifest.card
        return np.array([[_mix(state, k) % card for k in range(codebooks)] for state in states], np.int64)


class _SlotState:
    """Three running sums stand for the state of the three stateful models."""

    def __init__(self) -> None:
        self.encoder = self.temporal = self.decoder = 1


def _sampled(state: int, sampler: Sampler) -> int:
    if sampler.temperature == 0.0:
        return state
    return _mix(state, sampler.seed % 1_000_003 + sampler.position + sampler.top_k + sampler.temperature)


def _mix(state: int, value: float) -> int:
    return (state * 48_271 + round(value * 1009) + 11) % _PRIME
