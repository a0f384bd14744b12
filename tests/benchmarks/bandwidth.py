"""How fast this machine reads memory, now: `python -m tests.benchmarks.bandwidth` prints GB/s by number of threads.

The reader is the C library's `memchr` looking for a byte that is not there: nothing but vector loads. It runs in a
process of its own, over a buffer far larger than any cache, several passes; the median is the figure.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

BUFFER_BYTES = 512 << 20
PASSES = 9
ROOT = Path(__file__).parents[2]


def bandwidth(threads: int) -> dict[str, float]:
    """GB/s of one thread and of `threads` together, by their number as text (as JSON has it)."""
    command = [sys.executable, "-m", "tests.benchmarks.bandwidth", str(threads)]
    measured: dict[str, float] = json.loads(
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    )
    return measured


def measure(threads: int) -> float:
    """GB/s of `threads` threads that each read a part of one buffer."""
    memchr = ctypes.CDLL(None).memchr
    memchr.argtypes, memchr.restype = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], ctypes.c_void_p
    parts = np.array_split(np.ones(BUFFER_BYTES, np.uint8), threads)
    passes = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(PASSES + 1):
            began = time.perf_counter()
            found = list(pool.map(lambda part: memchr(part.ctypes.data, 0, part.nbytes), parts))
            passes.append(BUFFER_BYTES / (time.perf_counter() - began) / 1e9)
            assert not any(found)
    # The first pass starts the threads.
    return statistics.median(passes[1:])


if __name__ == "__main__":
    most = int(sys.argv[1]) if len(sys.argv) > 1 else os.cpu_count() or 1
    print(json.dumps({str(threads): round(measure(threads), 2) for threads in sorted({1, most})}))
