"""The host's memory as if it were a device's: sessions for CUDA run on it, with ONNX Runtime's CPU provider."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class HostMemory:
    """Counts what is allocated, of `size` bytes in all. `operators`: a library for the CPU."""

    kind, index = "cpu", 0
    providers: Sequence[tuple[str, Mapping[str, str]]] = (("CPUExecutionProvider", {}),)

    def __init__(self, size: int = 1 << 34, operators: Path | None = None) -> None:
        self.size = size
        self.operators = operators
        self.blocks: dict[int, Array] = {}

    def free(self) -> int:
        return self.size - sum(block.nbytes for block in self.blocks.values())

    def total(self) -> int:
        return self.size

    def allocate(self, size: int) -> int:
        block = np.zeros(size, np.uint8)
        self.blocks[block.ctypes.data] = block
        return block.ctypes.data

    def release(self, address: int) -> None:
        del self.blocks[address]

    def clear(self, address: int, size: int) -> None:
        ctypes.memset(address, 0, size)

    def pinned(self, shape: tuple[int, ...], dtype: type) -> Array:
        return np.zeros(shape, dtype)

    def upload(self, rows: Array, address: int) -> None:
        ctypes.memmove(address, rows.ctypes.data, rows.nbytes)

    def download(self, rows: Array, address: int) -> None:
        ctypes.memmove(rows.ctypes.data, address, rows.nbytes)

    def copy(self, source: int, target: int, size: int) -> None:
        ctypes.memmove(target, source, size)

    def synchronize(self) -> None:
        pass
