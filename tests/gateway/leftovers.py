"""A look at what an embedded server left behind: processes and shared memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest


def traces(owner: int) -> list[str]:
    """Processes, shared memory and folders of servers started by process `owner`, as readable lines."""
    prefix = f"personaplex_{owner}_"
    processes = [
        f"process {process.info['pid']}: {process.info['name']}"
        for process in psutil.process_iter(["pid", "name", "cmdline"])
        if any(prefix in argument for argument in process.info["cmdline"] or ())
    ]
    return processes + [str(region) for region in Path("/dev/shm").glob(f"{prefix}*")]


@pytest.fixture
def gone() -> Callable[[int], list[str]]:
    """Waits up to 5 s for everything of an owner's servers to be gone; what is left after that."""

    def wait(owner: int) -> list[str]:
        deadline = time.monotonic() + 5
        while (left := traces(owner)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left

    return wait
