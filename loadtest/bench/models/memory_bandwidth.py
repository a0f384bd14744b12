"""Measure memory read bandwidth: `python -m loadtest.bench.models.memory_bandwidth` prints GB/s per number of threads.

Two readers scan a buffer far larger than any cache, several times each, in a process of their own: the C library's
`memchr` with a byte that does not occur, and NumPy's maximum. The result is the median of the faster reader.
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

import numpy as np
import numpy.typing as npt

from loadtest.paths import ROOT
from model_repository.processors import processors

BUFFER_BYTES = 512 << 20
PASSES = 7

_NOT_IN_ONE = 0x55
"""A byte that the float32 1 has not."""

Floats = npt.NDArray[np.float32]


def bandwidth(threads: int) -> dict[str, float]:
    """GB/s of one thread and of `threads` together, by their number as text (as JSON has it)."""
    command = [sys.executable, "-m", "loadtest.bench.models.memory_bandwidth", str(threads)]
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
    memchr(part.ctypes.data, _NOT_IN_ONE, part.nbytes)


def _maximum(part: Floats) -> None:
    part.max()


if __name__ == "__main__":
    most = int(sys.argv[1]) if len(sys.argv) > 1 else processors()
    print(json.dumps({str(threads): round(measure(threads), 2) for threads in sorted({1, most})}))
