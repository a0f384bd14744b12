"""The frame loop: 80 ms of the user in, 80 ms of the agent out, four engine calls in between.

Output frame u + 1 needs nothing later than user frame u, so it leaves as soon as that one is heard. Output frame 0
needs no model at all: it is the silence the prompt ends with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

from gateway.engine.backend import Floats, Session, Tokens
from gateway.engine.cohort import Cohort
from gateway.engine.grid import AGENT, TEXT, TokenGrid
from gateway.engine.sampling import Sampling
from gateway.manifest import Manifest
from gateway.session.persona import Prefix
from gateway.session.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class StageSeconds:
    """What each of the four calls of one frame took; 0 where a frame did not need it."""

    encode: float = 0.0
    temporal: float = 0.0
    depformer: float = 0.0
    decode: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class AgentFrame:
    """80 ms of the agent.

    text: what is shown for `text_token`, often nothing. codes: [8] int64. pcm: [1920] float32 at 24 kHz.
    heard: the user's codes [8] this frame answers to, those of user frame `index - 1`; None for frame 0.
    seconds: from the user's frame being handed in to `pcm` being there, waiting for shared frames included.
    """

    index: int
    text_token: int
    text: str
    codes: Tokens
    pcm: Floats
    heard: Tokens | None
    stages: StageSeconds
    seconds: float


class Conversation:
    """One caller and one agent. `start` once, then `hear` for every 80 ms; `close` at the end, whatever happened."""

    def __init__(
        self,
        session: Session,
        prefix: Prefix,
        sampling: Sampling,
        manifest: Manifest,
        tokenizer: Tokenizer,
        cohort: Cohort,
        observe: Callable[[AgentFrame], None] = lambda frame: None,
        prefilled: Callable[[int, int], None] = lambda fed, cached: None,
    ) -> None:
        """`observe` is called with every frame made, in order; `prefilled` once, with the columns of the prompt that
        were computed and those that did not have to be.
        """
        self._session = session
        self._prefix = prefix
        self._sampling = sampling
        self._manifest = manifest
        self._tokenizer = tokenizer
        self._cohort = cohort
        self._observe = observe
        self._prefilled = prefilled
        self._frames = 0
        self._unanswered: Tokens | None = None
        last = prefix.columns[-1]
        self._grid = TokenGrid(manifest.delays, last=last, known=prefix.known, position=prefix.length - 1)

    async def start(self) -> AgentFrame:
        """Feed the whole prompt, and return output frame 0, the forced silence.

        Not part of a shared frame: a prompt takes many frames' time and would hold up everyone in it. It is fed
        between them.
        """
        began = perf_counter()
        prefix = self._prefix
        draw = self._sampling.text(prefix.length)
        begun = await self._session.prefill(prefix.columns, prefix.embeddings, draw, self._cohort.between)
        thought = begun.thought
        self._prefilled(prefix.length - begun.cached, begun.cached)
        fed = perf_counter()
        codes = await self._session.depformer(thought, self._sampling.audio(prefix.length))
        drawn = perf_counter()
        self._grid.advance(thought.text_token, codes)
        return await self._speak(None, StageSeconds(temporal=fed - began, depformer=drawn - fed), began)

    async def hear(self, pcm: Floats, *, live: bool = False) -> AgentFrame:
        """User frame u, pcm [1920] float32 at 24 kHz -> output frame u + 1. `live`: as it is spoken, not recorded."""
        return await self._answer(pcm, live)

    async def resume(self) -> AgentFrame:
        """The answer to the user frame that was only listened to, when the conversation goes on after all."""
        return await self._answer(None, live=False)

    @property
    def started(self) -> bool:
        """Whether the prompt has been fed."""
        return self._frames > 0

    async def _answer(self, pcm: Floats | None, live: bool) -> AgentFrame:
        """Output frame u + 1; without `pcm`, to the frame listened to before."""
        began = perf_counter()
        async with self._cohort.frame(live) as shared:
            entered = perf_counter()
            heard = self._unanswered if pcm is None else await self._session.encode(pcm)
            if heard is None:
                raise RuntimeError("no user frame has been listened to since the last answer")
            self._unanswered = None
            await shared.meet()
            encoded = perf_counter()
            column = self._grid.hear(heard)
            following = self._grid.position + 1
            thought = await self._session.step(column, self._sampling.text(following))
            await shared.meet()
            shared.give_way()
            fed = perf_counter()
            codes = await self._session.depformer(thought, self._sampling.audio(following))
            await shared.meet()
            drawn = perf_counter()
            self._grid.advance(thought.text_token, codes)
            stages = StageSeconds(encode=encoded - entered, temporal=fed - encoded, depformer=drawn - fed)
            return await self._speak(heard, stages, began)

    async def listen(self, pcm: Floats) -> Tokens:
        """Only encode a user frame that needs no answer, or none yet (`resume`): pcm [1920] -> codes [8]."""
        self._unanswered = await self._session.encode(pcm)
        return self._unanswered

    async def close(self) -> None:
        """Release everything held in the models."""
        await self._session.close()

    async def _speak(self, heard: Tokens | None, stages: StageSeconds, began: float) -> AgentFrame:
        frame = self._grid.frame()
        text_token = int(frame[TEXT])
        codes = np.ascontiguousarray(frame[AGENT])
        asked = perf_counter()
        pcm = await self._session.decode(codes)
        done = perf_counter()
        index, self._frames = self._frames, self._frames + 1
        spoken = AgentFrame(
            index=index,
            text_token=text_token,
            text=self._tokenizer.piece(text_token),
            codes=codes,
            pcm=pcm,
            heard=heard,
            stages=replace(stages, decode=done - asked),
            seconds=done - began,
        )
        self._observe(spoken)
        return spoken
