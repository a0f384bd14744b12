"""Triton entry point of `temporal`."""

from typing import Any

from model_repository.serving import triton_io
from model_repository.serving.temporal import TemporalModel


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        model = triton_io.ModelArguments.of(args)
        self._model = TemporalModel(
            model.graph,
            model.slots,
            model.integer("text_card"),
            model.integer("card"),
            model.integer("window"),
            model.device,
        )
        self._model.warm_up()
        triton_io.settle()

    def execute(self, requests: list[Any]) -> list[Any]:
        return triton_io.execute_sequences(self._model, requests)
