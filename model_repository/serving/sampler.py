"""How tokens are drawn: the sampling inputs of a request, and random numbers.

The draws of a conversation are a function of its seed and the column, and of nothing else. Philox is counter-based:
(seed, stream) is the key and the column the upper counter word, so a draw does not depend on the neighbours in a batch,
on the slot, or on what was drawn before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from model_repository.serving.row_request import Array, BadInputError, check

IDLE_NOISE, IDLE_TOP_K, IDLE_TEMPERATURE = 0.5, 1, 0.0
"""What rows get that take no part in a run."""

_LEAST, _MOST = np.float32(2.0**-25), np.float32(1 - 2.0**-24)
"""Uniform float32 draws are multiples of 2^-24: 0 is moved inside the open interval (0, 1)."""


_MASK = (1 << 64) - 1


class Stream(IntEnum):
    """Independent sources of one conversation."""

    TEXT = 0
    AUDIO = 1


class Noise:
    """The draws of one model's executions; one generator, set to each row's place in its stream."""

    def __init__(self) -> None:
        self._bits = np.random.Philox(key=np.zeros(2, np.uint64))
        self._generator = np.random.Generator(self._bits)
        self._state = self._bits.state

    def uniform(
        self, seeds: Sequence[int], stream: Stream, columns: Sequence[int], shape: tuple[int, ...]
    ) -> NDArray[np.float32]:
        """Draws [N, *shape] from the open interval (0, 1), float32; seeds and columns are taken modulo 2^64."""
        draws = np.empty((len(seeds), *shape), np.float32)
        inner = self._state["state"]
        key, counter = inner["key"], inner["counter"]
        key[1] = stream
        counter[:] = 0
        for row, seed, column in zip(draws, seeds, columns, strict=True):
            key[0], counter[3] = seed & _MASK, column & _MASK
            self._bits.state = self._state
            self._generator.random(out=row, dtype=np.float32)
        return draws.clip(_LEAST, _MOST, out=draws)


_noise = Noise()


@dataclass(frozen=True, eq=False)
class Samplers:
    """How the tokens of N rows are drawn: top_k 0 means the whole vocabulary, temperature 0 the first maximum.

    values: [N, 3] int64: seed, column, top_k. temperature: [N] float32.
    """

    values: Array
    temperature: Array

    @classmethod
    def of(cls, inputs: Mapping[str, Array]) -> Samplers:
        """From the tensors `sampler` [N, 3] int64 and `temperature` [N, 1] float32 of a request.

        Raises `BadInputError` for a wrong shape, a negative top_k or a temperature that is negative or not finite.
        """
        values, temperature = inputs["sampler"], inputs["temperature"]
        check(values, "sampler", np.int64, (3,))
        check(temperature, "temperature", np.float32, (1,))
        temperature, top_k = temperature[:, 0], values[:, 2]
        # NaN compares false.
        right = (top_k >= 0) & (temperature >= 0) & (temperature < np.inf)
        if not right.all():
            bad = int(right.argmin())
            raise BadInputError(
                f"top_k must be >= 0 and temperature finite and >= 0, got {top_k[bad]} and {temperature[bad]}"
            )
        return cls(values, temperature)

    @classmethod
    def merged(cls, samplers: Sequence[Samplers]) -> Samplers:
        """Those of several requests, one after the other."""
        if len(samplers) == 1:
            return samplers[0]
        values, temperatures = ([getattr(each, name) for each in samplers] for name in ("values", "temperature"))
        return cls(np.concatenate(values), np.concatenate(temperatures))

    def ranks(self, vocabulary: int) -> NDArray[np.int64]:
        """Candidates [N] of each row: 1 where it takes the maximum."""
        top_k = self.values[:, 2]
        ranks = np.where(top_k == 0, vocabulary, np.minimum(top_k, vocabulary))
        return np.where(self.temperature == 0, IDLE_TOP_K, ranks)

    def noise(self, stream: Stream, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Draws [N, *shape] of each row's seed and column."""
        noise = np.full((len(self.values), *shape), IDLE_NOISE, np.float32)
        drawn = self.temperature != 0
        seeds, columns = self.values[drawn, 0].tolist(), self.values[drawn, 1].tolist()
        noise[drawn] = _noise.uniform(seeds, stream, columns, shape)
        return noise
