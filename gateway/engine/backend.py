"""The seam between a conversation and whatever runs the four models."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Draw:
    """How the tokens of one column are drawn.

    `seed` and `position` (the column's index) together determine the noise; `top_k` 0 means the whole vocabulary;
    `temperature` 0 means the most likely token.
    """

    seed: int
    position: int
    top_k: int
    temperature: float


@dataclass(frozen=True, slots=True, eq=False)
class TemporalOutput:
    """What the temporal model answers: `hidden` [dim] of the last column fed, and the text token of the next one."""

    hidden: Floats
    text_token: int


@dataclass(frozen=True, slots=True, eq=False)
class Prefilled:
    """How a conversation begins: what the last column of its prompt led to.

    cached: of the columns before that, those that did not have to be computed.
    """

    thought: TemporalOutput
    cached: int


Pause = Callable[[], Awaitable[None]]
"""Waits for a good moment."""


async def at_once() -> None:
    """Any moment is good."""


class Session(Protocol):
    """One conversation's state inside the models. Calls to one session are made one after another."""

    async def encode(self, pcm: Floats) -> Tokens:
        """pcm [1920] (24 kHz, one frame) -> codes [8] int64."""

    async def prefill(self, columns: Tokens, embeddings: Floats, draw: Draw, pause: Pause = at_once) -> Prefilled:
        """Begin with `embeddings` [E, dim] (may be empty), then `columns` [S, 17]; answers for the last of them.

        What takes the models long is done in several calls, each of them after a `pause`.
        """

    async def step(self, column: Tokens, draw: Draw) -> TemporalOutput:
        """Feed one more column [17]."""

    async def depformer(self, thought: TemporalOutput, draw: Draw) -> Tokens:
        """The agent's codes [8] int64 of the column whose text token is `thought.text_token`."""

    async def decode(self, codes: Tokens) -> Floats:
        """codes [8] int64 -> pcm [1920] float32."""

    async def close(self) -> None:
        """Give the rows back, in bounded time and without raising; a second call does nothing."""


class Engine(Protocol):
    """Opens sessions. Any call may raise EngineUnavailable or EngineError."""

    def open(self) -> Session:
        """A session that holds nothing in the models until its first call."""

    async def ready(self) -> bool:
        """Whether all four models can be called now."""

    async def close(self) -> None:
        """Let go of the connection."""
