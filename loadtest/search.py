"""The highest number of callers that holds."""

from __future__ import annotations

from collections.abc import Callable


def highest(holds: Callable[[int], bool], first: int, limit: int, step: int) -> int:
    """The highest multiple of `step` up to `limit` for which `holds` is true, 0 if there is none.

    Doubles from `first` until it holds no more, then halves what lies between. `holds` is asked once per number, and
    is taken to be false above where it once was false.
    """
    good, bad = 0, limit // step * step + step
    now = max(step, min(first // step * step, bad - step))
    while bad - good > step:
        if holds(now):
            good = now
        else:
            bad = now
        now = min(2 * good, bad - step) if good and bad > limit else (good + bad) // 2 // step * step
        now = max(now, good + step)
    return good
