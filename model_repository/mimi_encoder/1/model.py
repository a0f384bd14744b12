"""Triton entry point of `mimi_encoder`."""

from typing import Any

from model_repository.serving import triton_model
from model_repository.serving.mimi import MimiModel


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        model = triton_model.ModelArguments.of(args)
        loaded = MimiModel(model.graph, model.slots, device=model.device)
        loaded.warm_up()
        self._sequences = triton_model.SequenceExecutor(loaded, loaded.slots)
        triton_model.freeze_gc()

    def execute(self, requests: list[Any]) -> list[Any]:
        return self._sequences.execute(requests)
