"""Describe the machine and the software a measurement was made with."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import psutil

_PACKAGES = ("personaplex-triton", "onnxruntime", "numpy", "nvidia-pytriton")


def machine() -> dict[str, str]:
    """Processor, memory, system and package versions, as text."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    processor = fields.get("model name") or platform.machine()
    family = f"family {fields['cpu family']} model {fields['model']}, " if "cpu family" in fields else ""
    clock = f"{float(fields['cpu MHz']) / 1000:.2f} GHz, " if "cpu MHz" in fields else ""
    return {
        "processor": f"{processor}, {family}{clock}{os.cpu_count()} threads",
        "memory": f"{psutil.virtual_memory().total / 1e9:.0f} GB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{package} {metadata.version(package)}" for package in _PACKAGES),
    }
