"""The adapter between Triton's Python backend and the models: arguments, executions and responses."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

from model_repository.serving import members
from model_repository.serving.depformer import DepformerModel
from model_repository.serving.execution_target import ExecutionTarget, device_of
from model_repository.serving.mimi import MimiModel
from model_repository.serving.row_request import BadInputError, BatchResult, Model, Parsed, RowRequest
from model_repository.serving.slots import Slots
from model_repository.serving.temporal import TemporalModel
from model_repository.serving.triton_tensors import Inputs, output

_START = pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START
_END = pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END


class TritonPythonModel:
    """The Triton entry point of all models: the model to serve is named as in the repository."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the model and run it once. Called by Triton before the first `execute`."""
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        graph = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        target = self.execution_target(parameters)
        self._execute = _executor(args["model_name"], graph, config["max_batch_size"], parameters, target)
        # No object of a loaded model is collected: a full garbage collection takes as long as several frames.
        gc.collect()
        gc.freeze()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return a response for each request."""
        return self._execute(requests)

    def execution_target(self, parameters: Mapping[str, str]) -> ExecutionTarget:
        """What the model runs on, by the parameters of its config."""
        return device_of(parameters["provider"])


def _executor(
    name: str, graph: Path, slots: int, parameters: Mapping[str, str], target: ExecutionTarget
) -> Callable[[Sequence[Any]], list[Any]]:
    """Load a model; what executes its requests."""
    sizes = {key: int(value) for key, value in parameters.items() if key in ("text_card", "card", "window")}
    if name == "depformer":
        depformer = DepformerModel(graph, sizes["text_card"], sizes["card"], slots, target)
        depformer.warm_up()
        return partial(execute_independent, depformer)
    model: Any
    if name == "temporal":
        cards = sizes["text_card"], sizes["card"]
        model = TemporalModel(graph, slots, *cards, sizes["window"], target, int(parameters["max_text_top_k"]))
    else:
        model = MimiModel(graph, slots, sizes.get("card"), target)
    model.warm_up()
    return partial(execute_sequences, model, model.slots)


def execute_sequences(model: Model[Parsed], slots: Slots, requests: Sequence[Any]) -> list[Any]:
    """Execute requests of the direct sequence batcher: the index in the list of requests is the row.

    Rows without a request arrive as copies of another one with READY false: they get an empty response.
    """
    results: list[BatchResult] = [{} for _ in requests]
    living: dict[int, Inputs] = {}
    started: set[int] = set()
    # First all rows change hands, so that no request is about the previous conversation of a row.
    for row, request in enumerate(requests):
        # Copies have no correlation id; READY is what Triton documents, but takes longer to read.
        if not request.correlation_id():
            continue
        inputs = Inputs(request)
        if not inputs["READY"]:
            continue
        flags = request.flags()
        if flags & _END:
            slots.end(row)
        elif flags & _START:
            started.add(row)
            try:
                if members.start(slots, row, inputs):
                    living[row] = inputs
            except BadInputError as error:
                results[row] = error
        else:
            living[row] = inputs
    accepted: dict[int, Parsed] = {}
    used: set[int] = set()
    for row, inputs in living.items():
        try:
            parsed = members.parse(model, slots, inputs, row if row in started else None)
            rows = set(parsed.rows.tolist())
            if used & rows:
                raise BadInputError(f"members: rows {sorted(used & rows)} are in another request of this execution")
            used |= rows
            accepted[row] = parsed
        except BadInputError as error:
            results[row] = error
    for row, result in zip(accepted, _run(model, list(accepted.values())), strict=True):
        done = result if isinstance(result, Exception) else {name: array[None] for name, array in result.items()}
        results[row] = done  # with Triton's batch dimension
    return [_respond(result, row if row in started else None) for row, result in enumerate(results)]


def execute_independent(model: Model[Parsed], requests: Sequence[Any]) -> list[Any]:
    """Execute requests of the dynamic batcher: each of any number of rows, without state."""
    accepted: dict[int, Parsed] = {}
    results: dict[int, BatchResult] = {}
    for index, request in enumerate(requests):
        try:
            given = Inputs(request)
            inputs = {name: members.required(given, name) for name in model.input_names}
            lengths = [len(array) for array in inputs.values()]
            if len(set(lengths)) != 1:
                raise BadInputError(f"expected inputs of the same number of rows, got {lengths}")
            accepted[index] = model.parse(RowRequest(np.arange(lengths[0]), inputs))
        except BadInputError as error:
            results[index] = error
    results |= zip(accepted, _run(model, list(accepted.values())), strict=True)
    return [_respond(results[index]) for index in range(len(requests))]


def _run(model: Model[Parsed], requests: Sequence[Parsed]) -> list[BatchResult]:
    if not requests:
        return []
    try:
        return model.run(requests)
    except Exception as error:  # the result of every request of this batch; the process must live on
        return [error] * len(requests)


def _respond(result: BatchResult, started: int | None = None) -> Any:
    """Make a response, with the row of a sequence that has `started`. A `BadInputError` is the client's error, and says
    that nothing was done.
    """
    if isinstance(result, Exception):
        error = pb_utils.TritonError
        code = error.INVALID_ARG if isinstance(result, BadInputError) else error.INTERNAL
        return pb_utils.InferenceResponse(error=error(str(result), code))
    if started is not None:
        result = {**result, "row": np.array([[started]], np.int64)}
    return pb_utils.InferenceResponse([output(name, array) for name, array in result.items()])
