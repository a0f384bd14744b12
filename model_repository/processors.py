"""How many processors there are for us."""

from __future__ import annotations

import os
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def processors() -> int:
    """Those this process may run on, but no more than a container's share of their time is worth.

    A share of 2.5 processors is two: a third thread would have all of them stopped at the end of every period.
    """
    ours = len(os.sched_getaffinity(0))
    try:
        quota, period = map(int, _QUOTA.read_text().split())
    except (OSError, ValueError):  # no control groups of version 2, or no limit: "max 100000"
        return ours
    return max(1, min(ours, quota // period))
