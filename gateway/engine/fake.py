"""An engine without models, for tests: plain arithmetic on its inputs and on what the session has seen so far.

Every answer depends on the whole history of its session in order, so that a frame that is dropped, repeated, sent
out of order or to another conversation changes everything after it.
"""

from __future__ import annotations

import asyncio
from collections import deque

import numpy as np

from gateway.engine.backend import Draw, Floats, Pause, Prefilled, TemporalOutput, Tokens, at_once
from gateway.errors import EngineUnavailable
from gateway.manifest import Manifest

_PRIME = 2_147_483_647


class FakeEngine:
    """`down` makes every call fail, `mute` makes the agent silent, `delay` is what each call takes in seconds, and
    `remembers` how many beginnings of conversations are known again.
    """

    def __init__(self, manifest: Manifest, delay: float = 0.0) -> None:
        self.manifest = manifest
        self.delay = delay
        self.down = False
        self.mute = False
        self.opened = 0
        self.closed = 0
        self.prefills: list[tuple[Tokens, Floats]] = []
        self.draws: list[tuple[str, Draw]] = []
        self.remembers = 100
        self.known: deque[bytes] = deque()

    def open(self) -> FakeSession:
        """Counted in `opened`; its end in `closed`."""
        self.opened += 1
        return FakeSession(self)

    async def ready(self) -> bool:
        """Unless `down`."""
        return not self.down

    async def close(self) -> None:
        """Nothing to let go of."""


class FakeSession:
    """Three running sums stand for the state of the three stateful models."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine
        self._encoder = self._temporal = self._decoder = 1
        self._closed = False

    async def encode(self, pcm: Floats) -> Tokens:
        """Codes that depend on every sample heard so far."""
        await self._call()
        self._encoder = _mix(self._encoder, float(np.abs(pcm).sum()))
        return self._codes(self._encoder)

    async def prefill(self, columns: Tokens, embeddings: Floats, draw: Draw, pause: Pause = at_once) -> Prefilled:
        """As if every column had been stepped."""
        await pause()
        self._engine.prefills.append((columns, embeddings))
        content = embeddings.tobytes() + columns[:-1].tobytes()
        cached = len(embeddings) + len(columns) - 1 if content in self._engine.known else 0
        self._engine.known = deque([*self._engine.known, content], maxlen=self._engine.remembers)
        for row in embeddings:
            self._temporal = _mix(self._temporal, float(row.sum()))
        for column in columns[:-1]:
            self._temporal = _mix(self._temporal, float(column @ np.arange(1, column.size + 1)))
        return Prefilled(await self.step(columns[-1], draw), cached)

    async def step(self, column: Tokens, draw: Draw) -> TemporalOutput:
        """A text token and a hidden vector that depend on every column so far, and on the draw."""
        await self._call()
        self._engine.draws.append(("text", draw))
        self._temporal = _mix(self._temporal, float(column @ np.arange(1, column.size + 1)))
        manifest = self._engine.manifest
        mixed = self._drawn(self._temporal, draw)
        text_token = manifest.text_padding_id if self._engine.mute else mixed % manifest.text_card
        return TemporalOutput(np.full(manifest.dim, self._temporal % 4096, np.float32), text_token)

    async def depformer(self, thought: TemporalOutput, draw: Draw) -> Tokens:
        """No state: only this column's hidden vector, text token and draw."""
        await self._call()
        self._engine.draws.append(("audio", draw))
        return self._codes(self._drawn(_mix(thought.text_token, float(thought.hidden[0])), draw))

    async def decode(self, codes: Tokens) -> Floats:
        """A quiet level that depends on every code so far."""
        await self._call()
        self._decoder = _mix(self._decoder, float(codes @ np.arange(1, codes.size + 1)))
        level = 0.0 if self._engine.mute else 0.1 + (self._decoder % 1000) / 2000
        return np.full(self._engine.manifest.frame_size, level, np.float32)

    async def close(self) -> None:
        """Counted once."""
        if not self._closed:
            self._closed = True
            await asyncio.sleep(self._engine.delay)
            self._engine.closed += 1

    async def _call(self) -> None:
        await asyncio.sleep(self._engine.delay)
        if self._closed:
            raise AssertionError("a closed session was called")
        if self._engine.down:
            raise EngineUnavailable("the fake engine is down")

    def _codes(self, state: int) -> Tokens:
        manifest = self._engine.manifest
        return np.array([_mix(state, k) % manifest.card for k in range(manifest.codebooks)], np.int64)

    def _drawn(self, state: int, draw: Draw) -> int:
        if draw.temperature == 0.0:
            return state
        return _mix(state, draw.seed % 1_000_003 + draw.position + draw.top_k + draw.temperature)


def _mix(state: int, value: float) -> int:
    return (state * 48_271 + round(value * 1009) + 11) % _PRIME
