"""A look at what an embedded server left behind: processes and shared memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from gateway.triton_server import TritonServer


def traces(owner: int | TritonServer) -> list[str]:
    """Processes and shared memory of a server, or of every server a process (its id) started, as readable lines."""
    prefix = owner._shm_prefix if isinstance(owner, TritonServer) else f"personaplex_{owner}_"
    assert prefix.startswith("personaplex_")
    processes = [
        f"process {process.info['pid']}: {process.info['name']}"
        for process in psutil.process_iter(["pid", "name", "cmdline"])
        if any(prefix in argument for argument in process.info["cmdline"] or ())
    ]
    return processes + [str(region) for region in Path("/dev/shm").glob(f"{prefix}*")]


@pytest.fixture(scope="session")
def gone() -> Callable[[int | TritonServer], list[str]]:
    """Waits up to 5 s for everything of a server, or of a process's servers, to be gone; what is left after that."""

    def wait(owner: int | TritonServer) -> list[str]:
        deadline = time.monotonic() + 5
        while (left := traces(owner)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left

    return wait
