"""What a model's session runs on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from model_repository.serving.device import CudaMemory
from model_repository.serving.device_session import DeviceSession
from model_repository.serving.host import HostMemory
from model_repository.serving.memory import check_memory
from model_repository.serving.session import Session, StatefulSession

ExecutionTarget = CudaMemory | Callable[[Path, int], Session] | None
"""None is the CPU. A function opens the session of a graph file for a number of rows by itself."""


def device_of(provider: str) -> CudaMemory | None:
    """The device of "cuda", the first that is visible; None for "cpu". Raises `DeviceError` if it is not there."""
    if provider not in ("cpu", "cuda"):
        raise ValueError(f"parameter provider: expected cpu or cuda, got {provider!r}")
    return CudaMemory() if provider == "cuda" else None


def open_session(model: Path, slots: int, target: ExecutionTarget) -> Session:
    """The session of the graph file `model` for `slots` rows.

    Raises `MemoryShortageError` if the slots do not fit into memory.
    """
    if target is None:
        check_memory(model, slots, HostMemory())
        return StatefulSession(model, slots)
    return target(model, slots) if callable(target) else DeviceSession(model, slots, target)
