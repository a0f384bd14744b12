"""One repository's sessions on the stand-in for CUDA, in a process of `check.py`: prints what was captured and run."""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_repository.serving.depformer import DepformerModel
from model_repository.serving.device import CudaMemory
from model_repository.serving.mimi import MimiModel
from model_repository.serving.row_request import RowRequest
from model_repository.serving.temporal import TemporalModel

COUNTED = ("captures", "replays", "allocations", "pageable", "stale")


def counts() -> dict[str, int]:
    library = ctypes.CDLL("libcublasLt.so.13")
    return {name: int(getattr(library, f"stand_in_{name}")()) for name in COUNTED}


def since(before: dict[str, int]) -> dict[str, int]:
    return {name: count - before[name] for name, count in counts().items()}


def main(models: Path, slots: int, steps: int, operators: Path) -> None:
    """Warm each model up, run `steps` batches of it, and print what was counted in both as JSON."""
    manifest = json.loads((models / "manifest.json").read_text())
    cards, card = (manifest["text_card"], manifest["card"]), manifest["card"]
    device = CudaMemory(operators=operators)

    def graph(name: str) -> Path:
        return models / "triton" / name / "1" / "model.onnx"

    sampling = {"sampler": np.array([1, 0, 5], np.int64), "temperature": np.array([0.5], np.float32)}
    columns = {"columns": np.ones((1, 17), np.int64), **sampling}
    thought = {"hidden": np.zeros(manifest["dim"], np.float32), "text_token": np.zeros(1, np.int64), **sampling}
    given: dict[str, tuple[Any, dict[str, NDArray[Any]]]] = {
        "mimi_encoder": (MimiModel(graph("mimi_encoder"), slots, device=device), {"pcm": np.zeros(1920, np.float32)}),
        "temporal": (TemporalModel(graph("temporal"), slots, *cards, manifest["context"] - 1, device), columns),
        "depformer": (DepformerModel(graph("depformer"), *cards, slots, device), thought),
        "mimi_decoder": (MimiModel(graph("mimi_decoder"), slots, card, device), {"codes": np.zeros(8, np.int64)}),
    }
    found = {}
    for name, (model, inputs) in given.items():
        before = counts()
        model.warm_up()
        captures = since(before)["captures"]
        before = counts()
        for step in range(steps):
            requests = [model.parse(RowRequest.one(row, inputs)) for row in range(1 + step % slots)]
            assert not any(isinstance(answer, Exception) for answer in model.run(requests))
        found[name] = since(before) | {"captures": captures}
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
