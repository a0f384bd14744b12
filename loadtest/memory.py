"""Memory, files and threads of a server's processes over time, and whether they stay level."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil

MB = 2**20
# Caches and arenas fill at the start: this share of the time, up to so many seconds, is left out.
WARM_UP_SHARE, WARM_UP_SECONDS = 0.25, 180.0
# Allowed growth between the first and the last quarter after that: the larger of the two, as allocators vary.
GROWTH_MB, GROWTH_SHARE = 8.0, 0.05
GROWTH_FILES, GROWTH_THREADS = 8, 4


@dataclass
class Samples:
    """Samples of one process; times in seconds since the start."""

    at: list[float] = field(default_factory=list)
    rss: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    def add(self, at: float, process: psutil.Process) -> None:
        """Add a sample. Raises psutil.Error if the process has ended."""
        with process.oneshot():
            rss, files, threads = process.memory_info().rss, process.num_fds(), process.num_threads()
        self.at.append(at)
        self.rss.append(rss)
        self.files.append(files)
        self.threads.append(threads)


@dataclass(frozen=True)
class Growth:
    """Growth of one process after the warm-up: medians of the first and the last quarter of that time."""

    first_mb: float
    last_mb: float
    mb_per_hour: float
    """The slope of a straight line through all samples."""
    peak_mb: float
    files: tuple[float, float]
    threads: tuple[float, float]

    @classmethod
    def of(cls, samples: Samples) -> Growth:
        """Needs at least two samples."""
        at = np.array(samples.at)
        after = at >= at[0] + min(WARM_UP_SHARE * (at[-1] - at[0]), WARM_UP_SECONDS)
        if after.sum() < 2:
            after[:] = True
        at, mb = at[after], np.array(samples.rss)[after] / MB
        quarter = (at[-1] - at[0]) / 4
        first, last = at <= at[0] + quarter, at >= at[-1] - quarter

        def ends(values: list[int]) -> tuple[float, float]:
            chosen = np.array(values)[after]
            return float(np.median(chosen[first])), float(np.median(chosen[last]))

        return cls(
            first_mb=float(np.median(mb[first])),
            last_mb=float(np.median(mb[last])),
            mb_per_hour=float(np.polyfit(at - at[0], mb, 1)[0] * 3600),
            peak_mb=max(samples.rss) / MB,
            files=ends(samples.files),
            threads=ends(samples.threads),
        )

    @property
    def mb(self) -> float:
        """Growth in MB."""
        return self.last_mb - self.first_mb

    def faults(self) -> list[str]:
        """Why this is not level; empty if it is."""
        faults = []
        bound = max(GROWTH_MB, GROWTH_SHARE * self.first_mb)
        if self.mb > bound:
            faults.append(f"grew from {self.first_mb:.1f} to {self.last_mb:.1f} MB; {bound:.1f} MB more are allowed")
        for name, (first, last), most in (
            ("files", self.files, GROWTH_FILES),
            ("threads", self.threads, GROWTH_THREADS),
        ):
            if last - first > most:
                faults.append(f"went from {first:g} to {last:g} {name}")
        return faults

    def to_json(self) -> dict[str, Any]:
        """JSON content."""
        return {
            "first_mb": round(self.first_mb, 2),
            "last_mb": round(self.last_mb, 2),
            "mb_per_hour": round(self.mb_per_hour, 2),
            "peak_mb": round(self.peak_mb, 2),
            "files": list(self.files),
            "threads": list(self.threads),
        }


class ProcessMonitor:
    """Samples `processes` while its task runs; keeps the samples of a process that has ended."""

    def __init__(self, processes: Mapping[str, psutil.Process], every: float) -> None:
        """`every`: seconds."""
        self._processes = dict(processes)
        self._every = every
        self.samples = {name: Samples() for name in processes}
        self.lost: list[str] = []

    async def run(self) -> None:
        """Sample until cancelled."""
        began = time.monotonic()
        while True:
            for name, process in list(self._processes.items()):
                try:
                    self.samples[name].add(time.monotonic() - began, process)
                except psutil.Error:
                    del self._processes[name]
                    self.lost.append(name)
            await asyncio.sleep(self._every)

    def growth(self) -> dict[str, Growth]:
        """Growth by process, of processes with at least two samples."""
        return {name: Growth.of(samples) for name, samples in self.samples.items() if len(samples.at) > 1}

    def faults(self) -> list[str]:
        """Why memory is not level; empty if it is."""
        faults = [f"{name} ended" for name in self.lost]
        faults += [f"{name} {fault}" for name, growth in self.growth().items() for fault in growth.faults()]
        return faults
