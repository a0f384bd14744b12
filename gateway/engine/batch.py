"""A batch of user frames on its way through the four models, and the agent frames that come out of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter

from gateway.engine.backend import Floats, TemporalOutput, Tokens


@dataclass(slots=True)
class StageSeconds:
    """Seconds that a batch spent in each of the four models; 0 where it did not need one."""

    encode: float = 0.0
    temporal: float = 0.0
    depformer: float = 0.0
    decode: float = 0.0


@dataclass(slots=True, eq=False)
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
    """User frame u of one conversation, or its codes where it was encoded before.

    pcm: [1920] float32. codes: [8] int64; None if the frame is to be encoded. live: the frame is sent in real time.
    answer: resolves to agent frame u + 1 or an error; cancelled if the result is not needed any more.
    """

    slot: int
    answer: asyncio.Future[AgentFrame]
    pcm: Floats
    codes: Tokens | None = None
    live: bool = False
    submitted_at: float = field(default_factory=perf_counter)


@dataclass(slots=True, eq=False)
class FrameBatch:
    """Frame requests that go through the models together, and the results of the stages behind it.

    A stage whose result is there is not run again, so a batch can be split in the middle. slots: [B]. pcm: [B, 1920].
    user_codes: [B, 8]. agent_codes: [B, 8]. frames: [B, 17]. ended: set when the batch has left the models.
    """

    requests: Sequence[FrameRequest]
    slots: Tokens
    pcm: Floats
    user_codes: Tokens | None = None
    output: TemporalOutput | None = None
    agent_codes: Tokens | None = None
    frames: Tokens | None = None
    stages: StageSeconds = field(default_factory=StageSeconds)
    began_at: float = field(default_factory=perf_counter)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def split(self) -> list[FrameBatch]:
        """The same requests in batches of one, as far along as this one."""
        return [self._member(slice(index, index + 1)) for index in range(len(self.requests))]

    def _member(self, rows: slice) -> FrameBatch:
        output = self.output
        return replace(
            self,
            requests=self.requests[rows],
            slots=self.slots[rows],
            pcm=self.pcm[rows],
            user_codes=_part(self.user_codes, rows),
            output=None if output is None else TemporalOutput(output.hidden[rows], output.text_tokens[rows]),
            agent_codes=_part(self.agent_codes, rows),
            frames=_part(self.frames, rows),
            stages=replace(self.stages),
            ended=asyncio.Event(),
        )


def _part(array: Tokens | None, rows: slice) -> Tokens | None:
    return None if array is None else array[rows]
