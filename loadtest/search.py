"""Search for the highest number of users a server holds."""

from __future__ import annotations

from collections.abc import Callable


def highest(holds: Callable[[int], bool], first: int, limit: int, step: int) -> int:
    """Return the highest multiple of `step` up to `limit` for which `holds` is true; 0 if there is none.

    The search gallops away from `first`, doubling its stride until the edge is between two numbers, and then bisects.
    A good first guess, such as the result of an earlier search, therefore takes few calls. `holds` is called once per
    number and is taken to be monotonic.
    """
    good, bad = 0, limit // step * step + step
    now = min(max(first // step * step, step), bad - step)
    stride = step
    while bad - good > step:
        if holds(now):
            good = now
        else:
            bad = now
        if bad > limit:
            now = good + stride
        elif good == 0:
            now = bad - stride
        else:
            now = (good + bad) // 2 // step * step
        stride *= 2
        now = min(max(now, good + step), bad - step)
    return good
