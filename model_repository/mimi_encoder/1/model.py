"""Triton entry point of `mimi_encoder`."""

from typing import Any

from model_repository.serving import triton_io
from model_repository.serving.mimi import MimiModel


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        model = triton_io.ModelArguments.of(args)
        loaded = MimiModel(model.graph, model.slots, device=model.device)
        loaded.warm_up()
        self._sequences = triton_io.Sequences(loaded)
        triton_io.settle()

    def execute(self, requests: list[Any]) -> list[Any]:
        return self._sequences.execute(requests)
