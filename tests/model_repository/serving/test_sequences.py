"""When a row is given a clean start, with stand-ins for the backend's stub and for the model."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from model_repository.serving.row_request import BatchResult, RowRequest

START, END = 1, 2


class Error(Exception):
    INVALID_ARG, INTERNAL = "invalid", "internal"

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class Model:
    """Records its requests; fails if `broken`."""

    input_names = ("codes",)
    optional: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.requests: list[RowRequest] = []
        self.broken = False

    def check(self, request: RowRequest) -> None:
        """Anything is right."""

    def run(self, requests: Sequence[RowRequest]) -> list[BatchResult]:
        self.requests = list(requests)
        if self.broken:
            raise RuntimeError("out of memory")
        return [{"pcm": np.zeros((len(request.rows), 2), np.float32)} for request in requests]


@pytest.fixture
def triton_io(monkeypatch: pytest.MonkeyPatch) -> Any:
    stub = SimpleNamespace(
        TRITONSERVER_REQUEST_FLAG_SEQUENCE_START=START,
        TRITONSERVER_REQUEST_FLAG_SEQUENCE_END=END,
        TritonError=Error,
        InferenceResponse=lambda outputs=(), error=None: SimpleNamespace(outputs=outputs, error=error),
        Tensor=SimpleNamespace(from_dlpack=lambda name, _capsule: name),
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", stub)
    monkeypatch.delitem(sys.modules, "model_repository.serving.triton_io", raising=False)
    return importlib.import_module("model_repository.serving.triton_io")


def request(members: list[tuple[int, int]], flags: int = 0) -> Any:
    arrays = {
        "members": np.array([members]),
        "codes": np.zeros((1, len(members), 8), np.int64),
        "READY": np.ones((1, 1)),
    }
    tensors = [
        SimpleNamespace(name=lambda name=name: name, to_dlpack=array.__dlpack__) for name, array in arrays.items()
    ]
    return SimpleNamespace(correlation_id=lambda: "id", flags=lambda: flags, inputs=lambda: tensors)


def starts(model: Model) -> dict[int, bool]:
    """Whether each row started."""
    return {row: start for request in model.requests for row, start in zip(request.rows, request.start, strict=True)}


def test_only_the_first_turn_of_a_conversation_is_a_start(triton_io: Any):
    sequences = triton_io.Sequences(model := Model())
    sequences.execute([request([(0, 11)], START), request([(-1, 12)], START)])
    assert starts(model) == {0: True}
    sequences.execute([request([(0, 11), (1, 12)])])
    assert starts(model) == {0: False, 1: True}
    sequences.execute([request([(0, 11), (1, 12)])])
    assert starts(model) == {0: False, 1: False}


def test_a_row_whose_first_turn_failed_is_still_to_be_cleaned(triton_io: Any):
    """Or it would go on from what its last tenant left."""
    sequences = triton_io.Sequences(model := Model())
    sequences.execute([request([(-1, 11)], START)])
    model.broken = True
    (answer,) = sequences.execute([request([(0, 11)])])
    assert answer.error.code == Error.INTERNAL
    model.broken = False
    sequences.execute([request([(0, 11)])])
    assert starts(model) == {0: True}


def test_a_new_tenant_starts_and_the_last_one_is_nobody(triton_io: Any):
    sequences = triton_io.Sequences(model := Model())
    sequences.execute([request([(0, 11)], START)])
    sequences.execute([request([(0, 0)], END)])
    (answer,) = sequences.execute([request([(0, 11)])])
    assert answer.error.code == Error.INVALID_ARG
    sequences.execute([request([(0, 12)], START)])
    assert starts(model) == {0: True}
