"""Triton entry point of `temporal`."""

from typing import Any

from model_repository.serving import triton_model
from model_repository.serving.temporal import TemporalModel


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        model = triton_model.ModelArguments.of(args)
        loaded = TemporalModel(
            model.graph,
            model.slots,
            model.integer("text_card"),
            model.integer("card"),
            model.integer("window"),
            model.device,
            model.integer("max_text_top_k"),
        )
        loaded.warm_up()
        self._sequences = triton_model.SequenceExecutor(loaded, loaded.slots)
        triton_model.freeze_gc()

    def execute(self, requests: list[Any]) -> list[Any]:
        return self._sequences.execute(requests)
