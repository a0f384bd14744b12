"""Triton entry point of `depformer`."""

from typing import Any

from model_repository.serving import triton_model
from model_repository.serving.depformer import DepformerModel


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        model = triton_model.ModelArguments.of(args)
        self._model = DepformerModel(
            model.graph, model.integer("text_card"), model.integer("card"), model.slots, model.device
        )
        self._model.warm_up(model.slots)
        triton_model.freeze_gc()

    def execute(self, requests: list[Any]) -> list[Any]:
        return triton_model.execute_independent(self._model, requests)
