"""When memory, files and threads count as level."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

import psutil
import pytest

from loadtest.memory import MB, Growth, ProcessMonitor, Samples


def samples(
    mb: Callable[[float], float],
    files: Callable[[float], int] = lambda at: 20,
    threads: Callable[[float], int] = lambda at: 5,
) -> Samples:
    """Half an hour, a sample every 5 s."""
    times = [5.0 * i for i in range(361)]
    return Samples(
        times, [round(mb(at) * MB) for at in times], [files(at) for at in times], [threads(at) for at in times]
    )


def test_warm_up_and_variation_are_not_growth():
    growth = Growth.of(samples(lambda at: 100 + 50 * min(at / 120, 1) + (at % 60) / 20))
    assert growth.faults() == []
    assert growth.mb == pytest.approx(0, abs=0.5)
    assert growth.mb_per_hour == pytest.approx(0, abs=1)
    assert growth.first_mb == pytest.approx(151.5, abs=1)
    assert growth.peak_mb == pytest.approx(153, abs=1)


def test_a_leak_is_measured_and_reported():
    growth = Growth.of(samples(lambda at: 100 + 24 * at / 3600))
    assert growth.mb_per_hour == pytest.approx(24)
    # Three quarters of the 27 minutes after the warm-up lie between the medians.
    assert growth.mb == pytest.approx(24 * 0.45 * 0.75, rel=0.05)
    (fault,) = growth.faults()
    assert fault == "grew from 102.6 to 110.7 MB; 8.0 MB more are allowed"


def test_a_large_process_may_vary_more():
    assert Growth.of(samples(lambda at: 2000 + 24 * at / 3600)).faults() == []


def test_growing_files_and_threads_are_reported():
    growth = Growth.of(samples(lambda at: 100, lambda at: 20 + int(at / 60), lambda at: 5 + int(at / 120)))
    assert [fault.split()[-1] for fault in growth.faults()] == ["files", "threads"]


def test_a_run_too_short_for_a_warm_up_is_still_measured():
    growth = Growth.of(Samples([0.0, 0.5], [MB, 2 * MB], [3, 3], [1, 1]))
    assert (growth.first_mb, growth.last_mb) == (1, 2)


async def test_a_process_that_ends_is_a_fault():
    gone = await asyncio.create_subprocess_exec("sleep", "0.2")
    monitor = ProcessMonitor({"this": psutil.Process(os.getpid()), "that": psutil.Process(gone.pid)}, 0.05)
    watching = asyncio.create_task(monitor.run())
    await gone.wait()
    await asyncio.sleep(0.2)
    watching.cancel()
    assert monitor.lost == ["that"]
    assert "that ended" in monitor.faults()
    assert len(monitor.samples["this"].at) > 3
    assert monitor.samples["this"].rss[0] > MB
