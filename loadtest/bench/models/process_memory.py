"""Runs a command and watches what memory it and its children hold."""

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
class Watched:
    """seconds: of time. peak_bytes: most resident memory, of all processes at one moment or of the first by its own
    account, whichever is more.
    """

    seconds: float
    peak_bytes: int


def watched(command: Sequence[str], folder: Path, log: IO[str]) -> Watched:
    """Run `command` in `folder`, its output to `log`, to its end. Raises `CalledProcessError` where it fails."""
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
    return Watched(seconds, max(sampled))


def _sample(pid: int, sampled: list[int], over: threading.Event) -> None:
    first = psutil.Process(pid)
    while not over.wait(SAMPLE_SECONDS):
        total = 0
        try:
            sampled.append(_most(pid))
            for process in (first, *first.children(recursive=True)):
                total += process.memory_info().rss
        except (psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError):
            continue
        sampled.append(total)


def _most(pid: int) -> int:
    """The most memory a process has held since its program began (a `wait4`'s counts its parent's from before)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
