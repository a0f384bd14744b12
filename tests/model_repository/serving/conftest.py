"""The four models of a built repository in this process, without Triton."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_repository.serving.depformer import DepformerModel
from model_repository.serving.mimi import MimiModel
from model_repository.serving.row_request import Model, RowRequest
from model_repository.serving.temporal import TemporalModel
from tests.model_repository.serving.host_memory import HostMemory

Array = NDArray[Any]


class Models:
    """The models of `repository`, for `slots` rows; each is loaded when it is first asked for.

    Those built for CUDA run in the sessions they have there, on a stand-in for the device.
    """

    def __init__(self, repository: Path, slots: int = 8, operators: Path | None = None) -> None:
        """`operators`: a library of our operators for the CPU, in place of the one for CUDA."""
        manifest = json.loads((repository / "manifest.json").read_text())
        self.dim, self.text_card, self.card = manifest["dim"], manifest["text_card"], manifest["card"]
        self.window = manifest["context"] - 1
        self.max_text_top_k = manifest["max_text_top_k"]
        self._repository = repository
        self._slots = slots
        self._device = HostMemory(operators=operators) if manifest["device"] == "cuda" else None

    @cached_property
    def encoder(self) -> MimiModel:
        return MimiModel(self._graph("mimi_encoder"), self._slots, device=self._device)

    @cached_property
    def decoder(self) -> MimiModel:
        return MimiModel(self._graph("mimi_decoder"), self._slots, self.card, self._device)

    @cached_property
    def temporal(self) -> TemporalModel:
        sizes = self._slots, self.text_card, self.card, self.window
        return TemporalModel(self._graph("temporal"), *sizes, self._device, self.max_text_top_k)

    @cached_property
    def depformer(self) -> DepformerModel:
        return DepformerModel(self._graph("depformer"), self.text_card, self.card, self._slots, self._device)

    def no_embeddings(self) -> Array:
        return np.zeros((0, self.dim), np.float32)

    def _graph(self, name: str) -> Path:
        return self._repository / "triton" / name / "1" / "model.onnx"


def sampler(column: int, *, seed: int = 1, top_k: int = 25, temperature: float = 0.0) -> dict[str, Array]:
    return {
        "sampler": np.array([seed, column, top_k], np.int64),
        "temperature": np.array([temperature], np.float32),
    }


def one(model: Any, row: int, inputs: Mapping[str, Array], *, start: bool = False) -> Mapping[str, Array]:
    """One row by itself; with `start` a conversation begins there."""
    return together(model, [turn(model, row, inputs, start=start)])[row]


def turn(model: Any, row: int, inputs: Mapping[str, Array], *, start: bool = False) -> RowRequest:
    """A request of one row; with `start` a conversation begins there."""
    if start:
        model.slots.begin(row)
    return RowRequest.one(row, inputs)


def together(model: Model[Any], requests: Sequence[RowRequest]) -> dict[int, Mapping[str, Array]]:
    """Outputs by row of several requests, checked, in one execution; any error is raised."""
    outputs: dict[int, Mapping[str, Array]] = {}
    for request, answer in zip(requests, model.run([model.parse(request) for request in requests]), strict=True):
        if isinstance(answer, Exception):
            raise answer
        for index, row in enumerate(request.rows.tolist()):
            outputs[row] = {name: array[index] for name, array in answer.items()}
    return outputs
