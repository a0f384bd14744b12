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


class Stream(IntEnum):
    """Independent sources of one conversation."""

    TEXT = 0
    AUDIO = 1


def uniform(seed: int, stream: Stream, column: int, count: int) -> NDArray[np.float32]:
    """`count` draws from the open interval (0, 1), float32; seed and column are taken modulo 2^64."""
    mask = (1 << 64) - 1
    key = np.array([seed & mask, stream], np.uint64)
    counter = np.array([0, 0, 0, column & mask], np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key, counter=counter))
    return generator.random(count, dtype=np.float32).clip(_LEAST, _MOST)
