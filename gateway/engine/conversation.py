"""A conversation: a slot of the frame scheduler, from the prompt to the last frame."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from gateway.engine.backend import Floats, Tokens
from gateway.engine.batch import AgentFrame, FrameRequest
from gateway.engine.prefix import PromptPrefix
from gateway.engine.sampling import SamplingParams
from gateway.engine.scheduler import FrameScheduler

_NUMBERS = 5
"""Numbers per frame in `Conversation.stage_seconds`."""


class Observer(Protocol):
    """Is called as a conversation, or a later turn of it, begins."""

    def starting(self) -> None:
        """The prompt is about to be fed."""

    def started(self, fed: int, cached: int) -> None:
        """The prompt is in the models: `fed` steps were computed, `cached` steps came from the prefix cache."""

    def first_audio(self) -> None:
        """The first frame that a model sampled is there. Frame 0 is the forced silence."""


class _NoObserver:
    def starting(self) -> None: ...

    def started(self, fed: int, cached: int) -> None: ...

    def first_audio(self) -> None: ...


class Conversation:
    """One user and one agent. `start` once, then `step` for every 80 ms; `close` at the end in any case.

    prefix: the prompt, to be set before `start`.
    stage_seconds: for each frame but frame 0, seconds in the four models and from submission to delivery: five numbers.
    """

    def __init__(self, scheduler: FrameScheduler, prefix: PromptPrefix | None, params: SamplingParams) -> None:
        """Takes a slot. `prefix` may be None until a recorded voice has been encoded."""
        self.prefix = prefix
        self.observer: Observer = _NoObserver()
        self._scheduler = scheduler
        self._params = params
        self.slot = scheduler.open()
        self.closed = False
        self._answer: asyncio.Future[AgentFrame] | None = None
        self._unanswered: tuple[Floats, Tokens] | None = None
        self.started = False
        self.stage_seconds = array("d")

    @property
    def frames(self) -> int:
        """Agent frames so far."""
        return self.started + len(self.stage_seconds) // _NUMBERS

    async def start(self) -> AgentFrame:
        """Feed the prompt; returns agent frame 0, the forced silence."""
        if self.prefix is None:
            raise RuntimeError("expected a prompt before the start")
        self.observer.starting()
        frame, prefilled = await self._scheduler.start(self.slot, self.prefix, self._params)
        self.started = True
        self.observer.started(self.prefix.length - prefilled.cached, prefilled.cached)
        return frame

    async def encode_voice(self, frames: Floats) -> Tokens:
        """Encode a voice recording before the start: frames [N, 1920] -> codes [N, 8]."""
        await self._scheduler.backend.open(self.slot)
        return np.stack([await self._scheduler.encode(self.slot, frame) for frame in frames])

    async def step(self, pcm: Floats, *, live: bool = False, codes: Tokens | None = None) -> AgentFrame:
        """User frame u, pcm [1920] float32 at 24 kHz -> agent frame u + 1.

        `live`: sent in real time. `codes`: [8], if the frame has been encoded before.
        """
        if self.closed:
            raise RuntimeError("expected a conversation that is not closed")
        self._answer = asyncio.get_running_loop().create_future()
        self._scheduler.queue.put_nowait(FrameRequest(self.slot, self._answer, pcm, codes, live))
        frame = await self._answer
        stages = frame.stages
        self.stage_seconds.extend((stages.encode, stages.temporal, stages.depformer, stages.decode, frame.seconds))
        if frame.index == 1:
            self.observer.first_audio()
        return frame

    async def encode(self, pcm: Floats) -> Tokens:
        """Only encode a user frame that needs no answer, or none yet (`resume`): pcm [1920] -> codes [8]."""
        codes = await self._scheduler.encode(self.slot, pcm)
        self._unanswered = pcm, codes
        return codes

    async def resume(self) -> AgentFrame:
        """The answer to the user frame that was only encoded, when the conversation goes on after all."""
        if self._unanswered is None:
            raise RuntimeError("expected a user frame that was encoded and not answered")
        (pcm, codes), self._unanswered = self._unanswered, None
        frame = await self.step(pcm, codes=codes)
        if frame.index != 1:
            self.observer.first_audio()
        return frame

    def say(self, words: Sequence[Sequence[int]]) -> None:
        """Have the agent say words, each of them text tokens, from the next step on."""
        self._scheduler.say(self.slot, words)

    async def close(self) -> None:
        """End the sequences and free the slot; a second call does nothing."""
        if not self.closed:
            self.closed = True
            if self._answer is not None:
                self._answer.cancel()
            await self._scheduler.release(self.slot)
