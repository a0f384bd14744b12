"""Count the nodes of captured runs on the stand-in for CUDA, in a process of `check.py`: prints JSON."""

from __future__ import annotations

import ctypes
import json
import sys
from collections import Counter
from pathlib import Path

from model_repository.serving.device import CudaMemory
from model_repository.serving.device_session import DeviceSession


def captured(model: Path, slots: int, sizes: list[int], operators: Path) -> dict[int, Counter[str]]:
    """Nodes of a captured run of so many rows, by kernel."""
    library = ctypes.CDLL("libcublasLt.so.13")
    library.stand_in_node.restype = ctypes.c_char_p
    session = DeviceSession(model, slots, CudaMemory(operators=operators))
    if "top_k" in session.feeds:
        session.feeds["top_k"][:] = 1
    found = {}
    for size in sizes:
        session.run(0, size)
        names = [library.stand_in_node(index).decode() for index in range(library.stand_in_nodes())]
        found[size] = Counter(names)
    return found


def main(model: Path, operators: Path, sizes: list[int]) -> None:
    """Print the nodes of one graph as JSON: by number of rows, by kernel."""
    print(json.dumps(captured(model, max(sizes), sizes, operators)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [int(size) for size in sys.argv[3:]])
