"""Where Triton's Python backend meets the models: arguments, requests, responses, and tensors through DLPack.

`as_numpy()` and `Tensor(name, array)` of the backend's stub were compiled against NumPy 1 and give wrong strides and
sizes under NumPy 2; DLPack does not depend on NumPy's own layout and works under both.
"""

from __future__ import annotations

import ctypes
import gc
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]
from numpy.typing import NDArray

from model_repository.serving.device import DeviceMemory
from model_repository.serving.place import Place
from model_repository.serving.turns import BadInputError, Model, Outcome, Turn

_set_destructor = ctypes.pythonapi.PyCapsule_SetDestructor
_set_destructor.argtypes = [ctypes.py_object, ctypes.c_void_p]
_set_destructor.restype = ctypes.c_int


_START = pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START
_END = pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END


@dataclass(frozen=True)
class ModelArguments:
    """What Triton tells a model when it loads it."""

    graph: Path
    slots: int
    parameters: Mapping[str, str]

    @classmethod
    def of(cls, args: Mapping[str, str]) -> ModelArguments:
        """From the `args` of `initialize`: the version folder's graph, `max_batch_size` and `parameters`."""
        config = json.loads(args["model_config"])
        version = Path(args["model_repository"]) / args["model_version"]
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        return cls(version / "model.onnx", config["max_batch_size"], parameters)

    @property
    def device(self) -> DeviceMemory | None:
        """Where the model runs; None is the CPU."""
        return Place.of(self.parameters).device

    def integer(self, name: str) -> int:
        return int(self.parameters[name])


def settle() -> None:
    """To be called when a model is loaded: what there is now stays, and collections need not go through it again.

    A full one takes as long as several frames' executions.
    """
    gc.collect()
    gc.freeze()


def execute_sequences(model: Model, requests: Sequence[Any]) -> list[Any]:
    """Answer one execution of the direct sequence batcher: position in the list is the row.

    Rows without a request arrive as copies of another one with READY false: they are answered with nothing and never
    looked at. A request with END just frees its row (Triton does that), whatever its inputs say.
    """
    living: dict[int, Mapping[str, Any]] = {}
    starts: set[int] = set()
    for row, request in enumerate(requests):
        # Such copies have no correlation id; READY is what Triton promises, but takes longer to read.
        if not request.correlation_id():
            continue
        tensors = _tensors(request)
        if not _array(tensors["READY"]):
            continue
        flags = request.flags()
        if flags & _END:
            continue
        living[row] = tensors
        if flags & _START:
            starts.add(row)
    return _execute(model, len(requests), living, starts)


def execute_independent(model: Model, requests: Sequence[Any]) -> list[Any]:
    """Answer one execution of the dynamic batcher: requests of any number of rows that have nothing to do with each
    other.
    """
    turns: list[Turn] = []
    spans: list[range | BadInputError] = []
    for request in requests:
        try:
            tensors = _tensors(request)
            columns = [_input(tensors, name) for name in model.input_names]
            rows = range(len(turns), len(turns) + len(columns[0]))
            inputs = zip(*columns, strict=True)
            turns += [
                Turn(row, False, dict(zip(model.input_names, values, strict=True)))
                for row, values in zip(rows, inputs, strict=True)
            ]
            spans.append(rows)
        except BadInputError as error:
            spans.append(error)
    outcome = _run(model, turns)
    return [_respond_all(outcome, span) for span in spans]


def _execute(model: Model, count: int, living: Mapping[int, Mapping[str, Any]], starts: set[int]) -> list[Any]:
    turns: list[Turn] = []
    errors: dict[int, Exception] = {}
    for row, tensors in living.items():
        try:
            inputs = {
                name: _read(tensors, name)
                for name in model.input_names
                if name in tensors or name not in model.optional
            }
            turns.append(Turn(row, row in starts, inputs))
        except BadInputError as error:
            errors[row] = error
    outcome = _run(model, turns)
    outcome.errors |= errors
    return [_respond(outcome, row) for row in range(count)]


def _run(model: Model, turns: Sequence[Turn]) -> Outcome:
    if not turns:
        return Outcome()
    try:
        return model.run(turns)
    except Exception as error:  # answered to every caller of this batch; the process must live on
        return Outcome(errors={turn.row: error for turn in turns})


def _respond(outcome: Outcome, row: int) -> Any:
    if row in outcome.errors:
        return _refuse(outcome.errors[row])
    outputs = outcome.outputs.get(row, {})
    return pb_utils.InferenceResponse([_tensor(name, array[None]) for name, array in outputs.items()])


def _respond_all(outcome: Outcome, rows: range | BadInputError) -> Any:
    """One answer for all rows of a request; an error of one is the error of all."""
    if isinstance(rows, BadInputError):
        return _refuse(rows)
    for row in rows:
        if row in outcome.errors:
            return _refuse(outcome.errors[row])
    names = outcome.outputs[rows[0]]
    return pb_utils.InferenceResponse(
        [_tensor(name, np.stack([outcome.outputs[row][name] for row in rows])) for name in names]
    )


def _refuse(error: Exception) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))


class _Capsule:
    """A DLPack capsule as `np.from_dlpack` wants it: with the keywords of later versions, which the stub refuses."""

    __slots__ = ("_capsule",)

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


def _array(tensor: Any) -> NDArray[Any]:
    array: NDArray[Any] = np.from_dlpack(_Capsule(tensor.to_dlpack()))
    return array


def _tensors(request: Any) -> dict[str, Any]:
    """A request's inputs by name; asked for one by one, each call would go through all of them."""
    return {tensor.name(): tensor for tensor in request.inputs()}


def _input(tensors: Mapping[str, Any], name: str) -> NDArray[Any]:
    """An input with its batch dimension; valid during `execute` only."""
    if name not in tensors:
        raise BadInputError(f"input {name!r} is missing")
    return _array(tensors[name])


def _read(tensors: Mapping[str, Any], name: str) -> NDArray[Any]:
    """An input without its batch dimension, which is 1; valid during `execute` only."""
    array = _input(tensors, name)
    if array.shape[0] != 1:
        raise BadInputError(f"{name}: expected batch size 1, got {array.shape[0]}")
    unbatched: NDArray[Any] = array[0]
    return unbatched


def _tensor(name: str, array: NDArray[Any]) -> Any:
    """An output; `array`, contiguous, has its batch dimension.

    It is not copied here: the stub does that before it calls the model again. The stub renames a consumed capsule in a
    way NumPy's own capsule destructor does not know and would report as an error, so that destructor is taken off; the
    stub calls the tensor's deleter, which lets go of the array.
    """
    capsule = array.__dlpack__()
    _set_destructor(capsule, None)
    return pb_utils.Tensor.from_dlpack(name, capsule)
