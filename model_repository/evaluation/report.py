"""What an evaluation found, in a form that prints and that JSON keeps."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import psutil

from model_repository.evaluation.quality import Quality
from model_repository.evaluation.questions import Answers

FORMAT = 1
"""Version of the JSON's layout."""

FRAME_MS = 80.0


@dataclass(frozen=True)
class WeightErrors:
    """What quantizing did to a repository's weights, as its manifest says.

    worst: those with the largest error relative to the tensor, worst first.
    """

    tensors: int
    worst: list[dict[str, Any]]

    @classmethod
    def of(cls, manifest: Mapping[str, Any], count: int = 3) -> WeightErrors | None:
        """None for a repository whose weights are as they were. `count` of `worst` at most."""
        tensors = [
            {"model": model, "tensor": tensor, **errors}
            for model, weights in manifest["weights"].items()
            for tensor, errors in weights.items()
        ]
        worst = sorted(tensors, key=lambda tensor: -float(tensor["relative"]))
        return cls(len(tensors), worst[:count]) if tensors else None


@dataclass(frozen=True)
class Evaluated:
    """One repository. Sizes in bytes, times in milliseconds.

    host_bytes: peak memory of a process that holds the four models and `slots` conversations; slot_bytes: the part of
    one conversation. device_bytes: None where everything runs on the CPU. frame_ms: a whole frame (encode, temporal,
    depformer, decode) of one conversation, median; rtf: the same over 80 ms. diverges_at: first of the columns whose
    tokens are not the reference's when it speaks freely; None if there is none.
    """

    models: str
    variant: str
    kv: str
    disk_bytes: int
    host_bytes: int
    slot_bytes: int
    device_bytes: int | None
    frame_ms: float
    frame_ms_p95: float
    stages_ms: Mapping[str, float]
    rtf: float
    diverges_at: int | None
    quality: Quality
    answers: Answers | None
    """To the checkpoint's evaluation set, where it has one."""
    weights: WeightErrors | None


@dataclass(frozen=True)
class Report:
    """The reference first, compared with itself, and then the others in the order they were given."""

    parameters: Mapping[str, Any]
    machine: Mapping[str, Any]
    repositories: list[Evaluated]

    def as_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "onnxruntime": ort.__version__,
        "numpy": np.__version__,
        "personaplex": metadata.version("personaplex-triton"),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
