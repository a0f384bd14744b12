"""Run a command and measure the peak memory of it and its children."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

SAMPLE_SECONDS = 0.05


@dataclass(frozen=True)
class ResourceUse:
    """seconds: wall time. peak_bytes: peak resident memory of all processes, sampled, or of the first by its VmHWM."""

    seconds: float
    peak_bytes: int


def run_measured(command: Sequence[str], folder: Path, log: IO[str]) -> ResourceUse:
    """Run `command` in `folder` to its end, output to `log`. Raises `CalledProcessError` if it fails."""
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    over = threading.Event()
    sampled = [0]
    sampler = threading.Thread(target=_sample, args=(process.pid, sampled, over))
    sampler.start()
    process.wait()
    seconds = time.perf_counter() - began
    over.set()
    sampler.join()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return ResourceUse(seconds, max(sampled))


def _sample(pid: int, sampled: list[int], over: threading.Event) -> None:
    first = psutil.Process(pid)
    while not over.wait(SAMPLE_SECONDS):
        total = 0
        try:
            sampled.append(_peak(pid))
            for process in (first, *first.children(recursive=True)):
                total += process.memory_info().rss
        except (psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError):
            continue
        sampled.append(total)


def _peak(pid: int) -> int:
    """Peak resident memory since the program started; `wait4` would include the parent's from before."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
