"""The host's memory as if it were a device's: sessions for CUDA run on it, with ONNX Runtime's CPU provider."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class HostMemory:
    """Counts what is allocated, of `size` bytes in all."""

    kind, index = "cpu", 0
    providers: Sequence[tuple[str, Mapping[str, str]]] = (("CPUExecutionProvider", {}),)

    def __init__(self, size: int = 1 << 34) -> None:
        self.size = size
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

    def upload(self, rows: Array, address: int, pitch: int = 0) -> None:
        width = rows.nbytes // len(rows)
        for index in range(len(rows)):
            ctypes.memmove(address + index * (pitch or width), rows.ctypes.data + index * width, width)

    def download(self, rows: Array, address: int, pitch: int = 0) -> None:
        width = rows.nbytes // len(rows)
        for index in range(len(rows)):
            ctypes.memmove(rows.ctypes.data + index * width, address + index * (pitch or width), width)

    def settle(self) -> None:
        pass
