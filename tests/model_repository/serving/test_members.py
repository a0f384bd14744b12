"""The protocol of requests to a stateful model, with stand-ins for the backend's stub and for the session."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from model_repository.serving.row_request import BatchResult, RowRequest
from model_repository.serving.slots import Slots

START, END = 1, 2
ROWS = 4


class Error(Exception):
    INVALID_ARG, INTERNAL = "invalid", "internal"

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class Session:
    """Records which rows are cleaned."""

    slots = ROWS

    def __init__(self) -> None:
        self.feeds = {"position": np.zeros(ROWS, np.int64)}
        self.cleaned: list[int] = []

    def reset(self, row: int) -> None:
        self.cleaned.append(row)


class Model:
    """Runs requests as the models do; fails if `broken`."""

    input_names = ("codes",)
    optional: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.session = Session()
        self.slots = Slots(self.session)  # type: ignore[arg-type]
        self.rows: list[int] = []
        self.broken = False

    def parse(self, request: RowRequest) -> RowRequest:
        return request

    def run(self, requests: Sequence[RowRequest]) -> list[BatchResult]:
        self.rows = [row for request in requests for row in request.rows.tolist()]
        self.session.cleaned = []
        for request in requests:
            self.slots.clean(request.rows)
        if self.broken:
            raise RuntimeError("out of memory")
        for request in requests:
            self.slots.advance(request.rows, 1)
        return [{"pcm": np.zeros((len(request.rows), 2), np.float32)} for request in requests]


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def sequences(model: Model, monkeypatch: pytest.MonkeyPatch) -> Any:
    stub = SimpleNamespace(
        TRITONSERVER_REQUEST_FLAG_SEQUENCE_START=START,
        TRITONSERVER_REQUEST_FLAG_SEQUENCE_END=END,
        TritonError=Error,
        InferenceResponse=lambda outputs=(), error=None: SimpleNamespace(outputs=outputs, error=error),
        Tensor=SimpleNamespace(from_dlpack=lambda name, _capsule: name),
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", stub)
    for name in ("triton_model", "triton_tensors"):
        monkeypatch.delitem(sys.modules, f"model_repository.serving.{name}", raising=False)
    return partial(
        importlib.import_module("model_repository.serving.triton_model").execute_sequences, model, model.slots
    )


def request(members: list[tuple[int, int]], flags: int = 0, codes: int | None = None) -> Any:
    arrays = {
        "members": np.array([members]),
        "codes": np.zeros((1, len(members) if codes is None else codes, 8), np.int64),
        "READY": np.ones((1, 1)),
    }
    tensors = [
        SimpleNamespace(name=lambda name=name: name, to_dlpack=array.__dlpack__) for name, array in arrays.items()
    ]
    return SimpleNamespace(correlation_id=lambda: "id", flags=lambda: flags, inputs=lambda: tensors)


def test_a_row_is_cleaned_before_the_first_run_of_a_conversation_only(sequences: Any, model: Model):
    first, second = sequences([request([(0, 11)], START), request([(-1, 12)], START)])
    assert (first.outputs, second.outputs) == (["pcm", "row"], ["row"])
    assert (model.rows, model.session.cleaned) == ([0], [0])
    sequences([request([(0, 11), (1, 12)])])
    assert (model.rows, model.session.cleaned) == ([0, 1], [1])
    sequences([request([(0, 11), (1, 12)])])
    assert (model.rows, model.session.cleaned) == ([0, 1], [])
    assert model.slots.position.tolist() == [3, 2, 0, 0]


def test_a_row_whose_first_run_failed_is_cleaned_again(sequences: Any, model: Model):
    """Or it would go on from what the failed run left."""
    sequences([request([(-1, 11)], START)])
    model.broken = True
    (answer,) = sequences([request([(0, 11)])])
    assert answer.error.code == Error.INTERNAL
    model.broken = False
    sequences([request([(0, 11)])])
    assert model.session.cleaned == [0]
    assert model.slots.position[0] == 1


def test_a_conversation_that_ended_has_no_row(sequences: Any, model: Model):
    sequences([request([(0, 11)], START)])
    sequences([request([(0, 0)], END)])
    (answer,) = sequences([request([(0, 11)])])
    assert answer.error.code == Error.INVALID_ARG
    sequences([request([(0, 12)], START)])
    assert model.session.cleaned == [0]


def test_a_late_request_is_rejected_in_the_execution_in_which_the_row_changes_hands(sequences: Any, model: Model):
    sequences([request([(0, 11)], START), request([(0, 12)], START)])
    model.rows = []
    late, started = sequences([request([(0, 11), (1, 12)]), request([(-1, 13)], START)])
    assert late.error.code == Error.INVALID_ARG
    assert started.error is None
    assert model.rows == []
    assert model.slots.fresh.tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("members", "codes", "message"),
    [
        ([(0, 11), (1, 99)], None, r"members\[1\]: row 1 is not, or no longer, that conversation's"),
        ([(0, 11), (2, 0)], None, r"members\[1\]: row 2 is not"),
        ([(-1, 11)], None, r"members\[0\]: row -1 is not"),
        ([(ROWS, 11)], None, r"members\[0\]: row 4 is not"),
        ([(0, 11), (0, 11)], None, "a row is named twice"),
        ([(0, 11), (1, 12)], 1, r"codes: expected shape \[1, 2, ...\], got \[1, 1, 8\]"),
    ],
)
def test_invalid_members_are_refused_with_nothing_done(sequences: Any, model: Model, members, codes, message):
    sequences([request([(0, 11)], START), request([(0, 12)], START)])
    position = model.slots.position.tolist()
    (answer,) = sequences([request(members, codes=codes)])
    assert answer.error.code == Error.INVALID_ARG
    with pytest.raises(Error, match=message):
        raise answer.error
    assert model.slots.position.tolist() == position


def test_a_row_is_in_one_request_of_an_execution(sequences: Any, model: Model):
    sequences([request([(0, 11)], START), request([(0, 12)], START)])
    good, twice = sequences([request([(0, 11), (1, 12)]), request([(1, 12)])])
    assert good.error is None
    assert "rows [1] are in another request" in str(twice.error)
    assert model.rows == [0, 1]
