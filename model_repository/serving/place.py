"""Where a model's session runs, and opening it there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from model_repository.serving.device import CudaMemory, DeviceMemory
from model_repository.serving.device_session import DeviceSession
from model_repository.serving.host import HostMemory
from model_repository.serving.memory import check_memory
from model_repository.serving.session import Session, StatefulSession
from model_repository.serving.timed_session import TimedSession, Timing

ExecutionTarget = DeviceMemory | Timing | None
"""What a session runs on; None is the CPU."""


@dataclass(frozen=True)
class Place:
    """`provider`: "cpu", "cuda" or "timed"; `device_id`: which of the visible GPUs; `timing`: of a timed one."""

    provider: str = "cpu"
    device_id: int = 0
    timing: Timing | None = None

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> Place:
        """From the parameters of a model's config; repositories of older versions have none and run on the CPU."""
        provider = parameters.get("provider", "cpu")
        timing = Timing.of(parameters) if provider == "timed" else None
        return cls(provider, int(parameters.get("device_id", "0")), timing)

    @property
    def device(self) -> ExecutionTarget:
        """None for the CPU. Raises `DeviceError`."""
        if self.provider == "cpu":
            return None
        if self.provider == "cuda":
            return CudaMemory(self.device_id)
        if self.timing is not None:
            return self.timing
        raise ValueError(f"parameter provider: expected cpu, cuda or timed, got {self.provider!r}")


CPU = Place()


def open_session(model: Path, slots: int, device: ExecutionTarget) -> Session:
    """The session of the graph file `model` for `slots` rows, on the CPU where `device` is None.

    Raises `MemoryShortageError` if the slots do not fit into memory.
    """
    if device is None:
        check_memory(model, slots, HostMemory())
        return StatefulSession(model, slots)
    if isinstance(device, Timing):
        return TimedSession(model, slots, device)
    return DeviceSession(model, slots, device)
