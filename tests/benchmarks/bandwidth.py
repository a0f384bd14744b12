"""How fast this machine reads memory, now: `python -m tests.benchmarks.bandwidth` prints GB/s by number of threads.

Two readers that do hardly more than load vectors go over a buffer far larger than any cache, several times each, in a
process of their own: the C library's `memchr`, looking for a byte that is not there, and NumPy's maximum. The figure is
the median of the faster one.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model_repository.serving.processors import processors

BUFFER_BYTES = 512 << 20
PASSES = 7
ROOT = Path(__file__).parents[2]

_NOT_IN_ONE = 0x55
"""A byte that the float32 1 has not."""

Floats = npt.NDArray[np.float32]


def bandwidth(threads: int) -> dict[str, float]:
    """GB/s of one thread and of `threads` together, by their number as text (as JSON has it)."""
    command = [sys.executable, "-m", "tests.benchmarks.bandwidth", str(threads)]
    measured: dict[str, float] = json.loads(
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    )
    return measured


def measure(threads: int) -> float:
    """GB/s of `threads` threads that each read a part of one buffer."""
    parts = np.array_split(np.ones(BUFFER_BYTES // 4, np.float32), threads)
    return max(_median(reader, parts) for reader in (_search, _maximum))


def _median(reader: Callable[[Floats], None], parts: list[Floats]) -> float:
    passes = []
    with ThreadPoolExecutor(len(parts)) as pool:
        for _ in range(PASSES + 1):
            began = time.perf_counter()
            list(pool.map(reader, parts))
            passes.append(BUFFER_BYTES / (time.perf_counter() - began) / 1e9)
    # The first pass starts the threads.
    return statistics.median(passes[1:])


def _search(part: Floats) -> None:
    memchr = ctypes.CDLL(None).memchr
    memchr.argtypes, memchr.restype = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], ctypes.c_void_p
    assert memchr(part.ctypes.data, _NOT_IN_ONE, part.nbytes) is None


def _maximum(part: Floats) -> None:
    assert part.max() == 1


if __name__ == "__main__":
    most = int(sys.argv[1]) if len(sys.argv) > 1 else processors()
    print(json.dumps({str(threads): round(measure(threads), 2) for threads in sorted({1, most})}))
