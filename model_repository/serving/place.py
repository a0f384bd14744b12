"""Where a model's session runs, and opening it there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from model_repository.serving.device import CudaMemory, DeviceMemory
from model_repository.serving.device_session import DeviceSession
from model_repository.serving.session import Session, StatefulSession


@dataclass(frozen=True)
class Place:
    """`provider`: "cpu" or "cuda"; `device_id`: which of the visible GPUs."""

    provider: str = "cpu"
    device_id: int = 0

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> Place:
        """From the parameters of a model's config; repositories of older versions have none and run on the CPU."""
        return cls(parameters.get("provider", "cpu"), int(parameters.get("device_id", "0")))

    @property
    def device(self) -> DeviceMemory | None:
        """None for the CPU. Raises `DeviceError`."""
        if self.provider == "cpu":
            return None
        if self.provider == "cuda":
            return CudaMemory(self.device_id)
        raise ValueError(f"parameter provider: expected cpu or cuda, got {self.provider!r}")


CPU = Place()


def open_session(model: Path, slots: int, device: DeviceMemory | None) -> Session:
    """The session of the graph file `model` for `slots` rows, on the CPU where `device` is None."""
    return StatefulSession(model, slots) if device is None else DeviceSession(model, slots, device)
