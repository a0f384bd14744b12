"""A batch of user frames on its way through the four models, and the agent frames that come out of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from gateway.engine.backend import Floats, TemporalOutput, Tokens


@dataclass(slots=True)
class StageSeconds:
    """Seconds that a batch spent in each of the four models; 0 where it did not need one."""

    encode: float = 0.0
    temporal: float = 0.0
    depformer: float = 0.0
    decode: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class AgentFrame:
    """80 ms of the agent.

    text: what is shown for `text_token`, often empty. codes: [8] int64. pcm: [1920] float32 at 24 kHz.
    user_codes: [8] int64 of the user frame that it answers, which is user frame `index - 1`; None for frame 0.
    seconds: from the user frame's submission to its delivery, the wait for a batch included.
    """

    index: int
    text_token: int
    text: str
    codes: Tokens
    pcm: Floats
    user_codes: Tokens | None
    stages: StageSeconds
    seconds: float


@dataclass(slots=True, eq=False)
class FrameRequest:
    """One user frame of one conversation: pcm [1920] float32, or `codes` [8] int64 where it was encoded before.

    `answer` gets the agent frame, or the error of this conversation. It is cancelled where nobody waits any more.
    """

    slot: int
    pcm: Floats | None
    codes: Tokens | None
    answer: asyncio.Future[AgentFrame]
    submitted_at: float = field(default_factory=perf_counter)


class FrameBatch:
    """Frame requests that go through the models together, and what the stages behind it have made of them.

    A stage whose result is there is not run again, so that a batch can be split in the middle. user_codes: [B, 8]
    int64.
    """

    def __init__(self, requests: Sequence[FrameRequest], pcm: Floats, user_codes: Tokens) -> None:
        self.requests = requests
        self.slots = np.array([request.slot for request in requests], np.int64)
        self.pcm = pcm
        self.user_codes = user_codes
        self.encoded = False
        self.output: TemporalOutput | None = None
        self.agent_codes: Tokens | None = None
        self.frames: Tokens | None = None
        self.stages = StageSeconds()
        self.began_at = perf_counter()

    @classmethod
    def of(cls, requests: Sequence[FrameRequest]) -> FrameBatch:
        """A batch that no stage has seen. Requests are either all to be encoded, or all encoded before."""
        if codes := [request.codes for request in requests if request.codes is not None]:
            batch = cls(requests, np.empty((len(requests), 0), np.float32), np.stack(codes))
            batch.encoded = True
            return batch
        pcm = [request.pcm for request in requests if request.pcm is not None]
        return cls(requests, np.stack(pcm), np.empty((len(requests), 0), np.int64))

    def split(self) -> list[FrameBatch]:
        """The same requests in batches of one, as far along as this one."""
        return [self._member(index) for index in range(len(self.requests))]

    def _member(self, index: int) -> FrameBatch:
        rows = slice(index, index + 1)
        member = FrameBatch(self.requests[rows], self.pcm[rows], self.user_codes[rows])
        member.encoded = self.encoded
        if self.output is not None:
            member.output = TemporalOutput(self.output.hidden[rows], self.output.text_tokens[rows])
        member.agent_codes = None if self.agent_codes is None else self.agent_codes[rows]
        member.frames = None if self.frames is None else self.frames[rows]
        member.began_at = self.began_at
        return member
