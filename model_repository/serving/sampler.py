"""The sampling inputs of a request, as rows of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_repository.serving.noise import Noise, Stream
from model_repository.serving.turns import BadInputError, check


@dataclass(frozen=True)
class Sampler:
    """How one row's token(s) are drawn: top_k 0 means the whole vocabulary, temperature 0 the first maximum."""

    seed: int
    column: int
    top_k: int
    temperature: float

    @classmethod
    def of(cls, inputs: Mapping[str, NDArray[Any]]) -> Sampler:
        """From the tensors `sampler` [3] int64 (seed, column, top_k) and `temperature` [1] float32 of a request.

        Raises `BadInputError` for a wrong shape, a negative top_k or a temperature that is negative or not finite.
        """
        check(inputs["sampler"], "sampler", np.int64, (3,))
        check(inputs["temperature"], "temperature", np.float32, (1,))
        seed, column, top_k = (int(value) for value in inputs["sampler"])
        temperature = float(inputs["temperature"][0])
        if top_k < 0 or not 0 <= temperature < float("inf"):
            raise BadInputError(f"top_k must be >= 0 and temperature finite and >= 0, got {top_k} and {temperature}")
        return cls(seed, column, top_k, temperature)

    def ranks(self, vocabulary: int) -> int:
        """Candidates of this row: 1 where it takes the maximum."""
        if self.temperature == 0:
            return 1
        return min(self.top_k or vocabulary, vocabulary)


IDLE = Sampler(seed=0, column=0, top_k=1, temperature=0.0)
"""For rows that take no part."""

_noise = Noise()


def draw(
    samplers: Sequence[Sampler], stream: Stream, vocabulary: int, shape: tuple[int, ...]
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """noise [B, *shape], top_k [B] and temperature [B] of a batch."""
    noise = np.full((len(samplers), *shape), 0.5, np.float32)
    for row, sampler in enumerate(samplers):
        if sampler.temperature != 0:
            noise[row] = _noise.uniform(sampler.seed, stream, sampler.column, shape)
    temperature = np.array([sampler.temperature for sampler in samplers], np.float32)
    return noise, np.array([sampler.ranks(vocabulary) for sampler in samplers], np.int64), temperature
