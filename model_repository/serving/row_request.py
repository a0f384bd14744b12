"""What a model is asked in one execution and what it answers: arrays with one entry per row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

BatchResult = dict[str, Array] | Exception
"""Outputs [N, ...] by name, in the order of the rows; or why there are none."""


class BadInputError(ValueError):
    """A request's tensor is not what the model takes; answered to that request alone, and nothing was done for it."""


@dataclass(frozen=True, eq=False)
class RowRequest:
    """What one request asks of N rows. inputs: arrays [N, ...], valid during the execution.

    rows [N] int64: each named once. With direct sequence batching a row is the same conversation for as long as that
    lasts. start [N] bool: where a conversation begins.
    """

    rows: Array
    start: Array
    inputs: Mapping[str, Array]

    @classmethod
    def one(cls, row: int, start: bool, inputs: Mapping[str, Array]) -> RowRequest:
        """One row; `inputs` have no axis for it."""
        return cls(np.array([row]), np.array([start]), {name: array[None] for name, array in inputs.items()})

    @classmethod
    def merged(cls, requests: Sequence[RowRequest], names: Sequence[str]) -> RowRequest:
        """Several requests as one, with the inputs `names`."""
        if len(requests) == 1:
            return requests[0]
        return cls(
            np.concatenate([request.rows for request in requests]),
            np.concatenate([request.start for request in requests]),
            {name: np.concatenate([request.inputs[name] for request in requests]) for name in names},
        )


def split(requests: Sequence[RowRequest], outputs: Mapping[str, Array]) -> list[BatchResult]:
    """Each request's part of the outputs of `RowRequest.merged`."""
    answers: list[BatchResult] = []
    first = 0
    for request in requests:
        end = first + len(request.rows)
        answers.append({name: array[first:end] for name, array in outputs.items()})
        first = end
    return answers


class Model(Protocol):
    """What Triton hands requests to."""

    input_names: Sequence[str]
    optional: frozenset[str]
    """Inputs that a request may leave out; one that has them is of one row."""

    def check(self, request: RowRequest) -> None:
        """Raise `BadInputError` if a tensor is not what the model takes."""

    def run(self, requests: Sequence[RowRequest]) -> list[BatchResult]:
        """Run every row of every request, each of them checked, in as few graph runs as possible.

        Raises only if the whole batch failed.
        """


def answer_one(model: Model, row: int, inputs: Mapping[str, Array], *, start: bool = False) -> dict[str, Array]:
    """Run one row by itself: inputs and outputs without an axis for it. Raises what is its answer otherwise."""
    (answer,) = model.run([RowRequest.one(row, start, inputs)])
    if isinstance(answer, Exception):
        raise answer
    return {name: array[0] for name, array in answer.items()}


def check(array: Array, name: str, dtype: type, shape: tuple[int, ...], high: int | None = None) -> None:
    """Raise `BadInputError` unless the entries of array [N, ...] have this dtype and shape (-1: any).

    `high`: values must be in 0..high-1.
    """
    if array.dtype != dtype or (array.shape[1:] != shape and not _fits(array.shape[1:], shape)):
        raise BadInputError(
            f"{name}: expected {np.dtype(dtype).name} of shape {list(shape)}, "
            f"got {array.dtype.name} {list(array.shape[1:])}"
        )
    # As unsigned numbers negative ones are the largest.
    if high is not None and array.size and array.view(np.uint64).max() >= high:
        raise BadInputError(f"{name}: values must be in 0..{high - 1}, got {array.min()}..{array.max()}")


def _fits(got: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(got) == len(wanted) and all(want in (-1, size) for want, size in zip(wanted, got, strict=True))
