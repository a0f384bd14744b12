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

from model_repository.serving.place import ExecutionTarget, Place
from model_repository.serving.row_request import BadInputError, BatchResult, Model, RowRequest, check

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
    def device(self) -> ExecutionTarget:
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


class Sequences:
    """Answers the executions of a direct sequence batcher: position in the list of requests is the row.

    A request is of one conversation, whose sequence it belongs to and whose row it has. It may speak for other
    conversations too: a frame that many share is then one request, and what Triton and its Python backend spend on a
    request is spent once. `members` [N, 2] int64 says whom it speaks for, by row and key, and every other input has N
    entries. A key is what a conversation said when it began: nobody is taken for the row's last tenant.

    A request with START has one member, whose row is 0, or -1 if there is nothing to be done yet: its other inputs are
    not looked at then. The answer has an output `row` [1], the sequence's own.

    A request in which anything is wrong is refused whole, with nothing done.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._keys: dict[int, int] = {}
        self._fresh: set[int] = set()
        """Rows whose conversation has begun, but has not been run successfully."""

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response per request, in order.

        Rows without a request arrive as copies of another one with READY false: they are answered with nothing and
        never looked at. A request with END just frees its row (Triton does that), whatever its inputs say.
        """
        living, begun, errors = self._accept(requests)
        asked: dict[int, RowRequest] = {}
        taken: set[int] = set()
        for row, tensors in living.items():
            try:
                members = [[row, self._keys[row]]] if row in begun else _members(tensors)
                request = self._request(tensors, members)
                rows = set(request.rows.tolist())
                if taken & rows:
                    raise BadInputError(
                        f"members: rows {sorted(taken & rows)} are in another request of this execution"
                    )
                taken |= rows
                asked[row] = request
            except BadInputError as error:
                errors[row] = error
        answers: dict[int, BatchResult] = dict(zip(asked, _run(self._model, list(asked.values())), strict=True))
        for row, request in asked.items():
            # What failed may not have cleaned the row.
            if self._fresh and not isinstance(answers[row], Exception):
                self._fresh.difference_update(request.rows.tolist())
        return [
            _refuse(errors[row]) if row in errors else _respond(answers.get(row, {}), row if row in begun else None)
            for row in range(len(requests))
        ]

    def _accept(
        self, requests: Sequence[Any]
    ) -> tuple[dict[int, Mapping[str, Any]], set[int], dict[int, BadInputError]]:
        """By row: the inputs of those with something to do; which sequences begin; what is wrong with those."""
        living: dict[int, Mapping[str, Any]] = {}
        begun: set[int] = set()
        errors: dict[int, BadInputError] = {}
        for row, request in enumerate(requests):
            # Copies have no correlation id; READY is what Triton promises, but takes longer to read.
            if not request.correlation_id():
                continue
            tensors = _tensors(request)
            if not _array(tensors["READY"]):
                continue
            flags = request.flags()
            if flags & _END:
                self._keys.pop(row, None)
                continue
            if flags & _START:
                begun.add(row)
                try:
                    first, self._keys[row] = _first_member(tensors)
                except BadInputError as error:
                    errors[row] = error
                    continue
                self._fresh.add(row)
                if first < 0:
                    continue
            living[row] = tensors
        return living, begun, errors

    def _request(self, tensors: Mapping[str, Any], members: Sequence[Sequence[int]]) -> RowRequest:
        """What is asked of the members' rows, checked."""
        model = self._model
        if len(members) > 1 and (alone := [name for name in model.optional if name in tensors]):
            raise BadInputError(f"{alone[0]}: expected one member, got {len(members)}")
        inputs = {
            name: _read(tensors, name, len(members))
            for name in model.input_names
            if name in tensors or name not in model.optional
        }
        for index, (row, key) in enumerate(members):
            if self._keys.get(row) != key:
                raise BadInputError(f"members[{index}]: row {row} is not, or no more, that conversation's")
        rows = [row for row, _ in members]
        if len(set(rows)) != len(rows):
            raise BadInputError("members: a row is named twice")
        request = RowRequest(np.array(rows), np.array([row in self._fresh for row in rows]), inputs)
        model.check(request)
        return request


def _respond(answer: BatchResult, begun: int | None) -> Any:
    """One row's or several rows' outputs, and the row that has `begun`, if one has."""
    if isinstance(answer, Exception):
        return _refuse(answer)
    outputs = {name: array[None] for name, array in answer.items()}
    if begun is not None:
        outputs["row"] = np.array([[begun]], np.int64)
    return pb_utils.InferenceResponse([_tensor(name, array) for name, array in outputs.items()])


def execute_independent(model: Model, requests: Sequence[Any]) -> list[Any]:
    """Answer one execution of the dynamic batcher: requests of any number of rows that have nothing to do with each
    other.
    """
    asked: dict[int, RowRequest] = {}
    answers: dict[int, BatchResult] = {}
    for index, request in enumerate(requests):
        try:
            tensors = _tensors(request)
            inputs = {name: _input(tensors, name) for name in model.input_names}
            lengths = [len(array) for array in inputs.values()]
            if len(set(lengths)) != 1:
                raise BadInputError(f"expected inputs of the same number of rows, got {lengths}")
            rows = RowRequest(np.arange(lengths[0]), np.zeros(lengths[0], bool), inputs)
            model.check(rows)
            asked[index] = rows
        except BadInputError as error:
            answers[index] = error
    answers |= zip(asked, _run(model, list(asked.values())), strict=True)
    return [_respond_rows(answers[index]) for index in range(len(requests))]


def _run(model: Model, requests: Sequence[RowRequest]) -> list[BatchResult]:
    if not requests:
        return []
    try:
        return model.run(requests)
    except Exception as error:  # answered to every caller of this batch; the process must live on
        return [error] * len(requests)


def _respond_rows(answer: BatchResult) -> Any:
    if isinstance(answer, Exception):
        return _refuse(answer)
    return pb_utils.InferenceResponse([_tensor(name, array) for name, array in answer.items()])


def _refuse(error: Exception) -> Any:
    """BadInputError is the client's to mend, and says that nothing was done."""
    kind = pb_utils.TritonError
    code = kind.INVALID_ARG if isinstance(error, BadInputError) else kind.INTERNAL
    return pb_utils.InferenceResponse(error=kind(str(error), code))


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


def _first_member(tensors: Mapping[str, Any]) -> list[int]:
    """Row and key in a request that begins a sequence."""
    members = _members(tensors)
    if len(members) != 1:
        raise BadInputError(f"members: expected one at the start of a sequence, got {len(members)}")
    return members[0]


def _members(tensors: Mapping[str, Any]) -> list[list[int]]:
    """Rows and keys of whom a request speaks for."""
    members = _input(tensors, "members")
    check(members, "members", np.int64, (-1, 2))
    if members.shape[:1] != (1,) or not members.size:
        raise BadInputError("members: expected at least one")
    listed: list[list[int]] = members[0].tolist()
    return listed


def _read(tensors: Mapping[str, Any], name: str, members: int) -> NDArray[Any]:
    """An input [members, ...] without its batch dimension, which is 1; valid during `execute` only."""
    array = _input(tensors, name)
    if array.shape[:2] != (1, members):
        raise BadInputError(f"{name}: expected shape [1, {members}, ...], got {list(array.shape)}")
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
