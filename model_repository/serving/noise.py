"""The random draws of a conversation: a function of its seed and the column, and of nothing else.

Philox is counter-based: (seed, stream) is the key and the column the upper counter word, so a draw does not depend on
the neighbours in a batch, on the slot, or on what was drawn before.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

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
