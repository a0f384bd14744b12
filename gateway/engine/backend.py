"""The batched protocol between the frame scheduler and whatever runs the four models.

Every array's first axis is the batch. A conversation is addressed by its slot, which is the same in all models.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from gateway.engine.prefix import PromptPrefix

Floats = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class TemporalOutput:
    """Output of the temporal model: hidden [B, dim] float32 and text_tokens [B] int64 of the next step."""

    hidden: Floats
    text_tokens: Tokens


@dataclass(frozen=True, slots=True, eq=False)
class Prefilled:
    """Result of a prefill: the output of the prompt's last step (B = 1), and how many steps came from the cache."""

    output: TemporalOutput
    cached: int


Wait = Callable[[], Awaitable[object]]
"""Waits until the temporal model is between two batches."""


class BatchRejected(Exception):  # noqa: N818 (an expected outcome of a call)
    """A model rejected a whole batch and changed no state: at least one of its members is at fault.

    The members can be run again, each in a batch of its own. `error` is the error of the member at fault.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Backend(Protocol):
    """Runs the four models for batches of slots. Calls for one slot are made one after another.

    Shapes: slots [B] int64, distinct; sampler [B, 3] int64 (seed, position of the sampled step, top-k; top-k 0 means
    the whole vocabulary); temperature [B, 1] float32 (0 is greedy). Every call may raise BatchRejected,
    EngineUnavailable or EngineError.
    """

    async def open(self, slot: int) -> None:
        """Start the slot's sequences with clean state. A slot that is in use starts again from clean state."""

    async def encode(self, slots: Tokens, pcm: Floats) -> Tokens:
        """pcm [B, 1920] float32 at 24 kHz -> codes [B, 8] int64."""

    async def step(self, slots: Tokens, steps: Tokens, sampler: Tokens, temperature: Floats) -> TemporalOutput:
        """Feed one complete step [B, 17] of each conversation to the temporal model."""

    async def depformer(self, output: TemporalOutput, sampler: Tokens, temperature: Floats) -> Tokens:
        """Agent codes [B, 8] int64 of the step whose text tokens are `output.text_tokens`."""

    async def decode(self, slots: Tokens, codes: Tokens) -> Floats:
        """codes [B, 8] int64 -> pcm [B, 1920] float32."""

    async def prefill(
        self, slot: int, prefix: PromptPrefix, sampler: Tokens, temperature: Floats, wait: Wait
    ) -> Prefilled:
        """Feed a prompt to an open slot. A long one goes in chunks, each of them after a `wait`. No BatchRejected.

        sampler [1, 3] and temperature [1, 1] are those of the step after the prompt.
        """

    async def release(self, slot: int) -> None:
        """End the slot's sequences after the call in flight, if there is one. Takes bounded time, never raises."""

    async def ready(self) -> bool:
        """Whether all four models answer now."""

    async def close(self) -> None:
        """Close the connections."""
