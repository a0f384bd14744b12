"""How large the pieces of a prefill are, and how soon they follow: what a second is enough for while nobody talks, else
what fits between frames.

The temporal model does one thing at a time, and on a CPU it takes the other models' cores. A step that comes while a
piece of another caller's prefix is under way waits for its end; so while others talk a piece may take no more than a
share of a frame, and all pieces together no more than that share of the time. How many columns that is, pieces tell
themselves: their number is doubled or halved by what the last one took. While nobody talks a piece may take a second:
somebody else may begin meanwhile, and even if the models know all of that prompt, it waits.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

MOST = 512
"""Columns of a piece at most."""

FIRST = 128
"""Columns of the first one while nobody talks, when it is not known yet how long they take."""

ALONE = 1.0
"""Seconds that a piece may take while nobody talks."""

LEAST = 8
"""Below this a piece takes hardly less time, which is then that of reading the model's weights. All pieces begin at
multiples of it: where ONNX Runtime multiplies quantized matrices, a row's rounding depends on the rows beside it."""

SHARE = 0.2
"""Of a frame's 80 ms, what a piece may take: a step and what else a frame needs has room beside it."""


class Pace:
    """For one temporal model; `frame_seconds`: what a frame lasts."""

    def __init__(self, frame_seconds: float, clock: Callable[[], float] = monotonic) -> None:
        self._frame_seconds = frame_seconds
        self._limit = SHARE * frame_seconds
        self._clock = clock
        self._rested_at = 0.0
        self._columns = LEAST
        self._alone = FIRST
        self.pieces = 0
        """Pieces there have been."""

    def columns(self, others_talk: bool) -> int:
        """Columns that the next piece may have."""
        return self._columns if others_talk else self._alone

    def rest(self, others_talk: bool) -> float:
        """Seconds until the next piece may begin; however long the last one was, it is not more than a frame."""
        return max(self._rested_at - self._clock(), 0.0) if others_talk else 0.0

    def took(self, columns: int, seconds: float) -> None:
        """A piece of so many columns took the model so long."""
        self.pieces += 1
        fitting = int(ALONE * columns / max(seconds, 1e-6))
        self._alone = min(max(fitting // LEAST * LEAST, LEAST), MOST)
        self._rested_at = self._clock() + min(seconds * (1 / SHARE - 1), self._frame_seconds)
        if columns <= self._columns and seconds > self._limit:
            self._columns = max(self._columns // 2, LEAST)
        elif columns >= self._columns and 2 * seconds * self._columns / columns <= self._limit:
            self._columns = min(self._columns * 2, MOST)


def piece(done: int, total: int, columns: int, window: int) -> int:
    """How many of the `total` columns come next after the first `done`: `columns`, or what is left.

    Never one column alone, if that can be: a run of one rounds differently from the same column in a larger run, and
    what a conversation says must not depend on how busy the server was when it began. Behind the model's `window` each
    is a run of its own anyway.
    """
    count = min(columns, total - done)
    for end in (min(window, total), total):
        if end - (done + count) == 1:
            count += 1
    return count
