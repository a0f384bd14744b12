"""The random draws of a conversation: a function of its seed and the column, and of nothing else.

Philox is counter-based: (seed, stream) is the key and the column the upper counter word, so a draw does not depend on
the neighbours in a batch, on the slot, or on what was drawn before.
"""

from __future__ import annotations

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

    def uniform(self, seed: int, stream: Stream, column: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Draws of `shape` from the open interval (0, 1), float32; seed and column are taken modulo 2^64."""
        inner = self._state["state"]
        inner["key"][:] = seed & _MASK, stream
        inner["counter"][:] = 0, 0, 0, column & _MASK
        self._bits.state = self._state
        return self._generator.random(shape, dtype=np.float32).clip(_LEAST, _MOST)
