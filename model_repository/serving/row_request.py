"""Requests of one execution and their results: arrays with one entry per row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

BatchResult = dict[str, Array] | Exception
"""Outputs [N, ...] by name, in the order of the rows; or why there are none."""


class BadInputError(ValueError):
    """A request is invalid. Only that request is refused, and no state has changed."""


@dataclass(frozen=True, eq=False)
class RowRequest:
    """Inputs [N, ...] by name for the rows [N] int64, each named once. Valid during one execution."""

    rows: Array
    inputs: Mapping[str, Array]

    @classmethod
    def one(cls, row: int, inputs: Mapping[str, Array]) -> RowRequest:
        """One row; `inputs` have no axis for it."""
        return cls(np.array([row]), {name: array[None] for name, array in inputs.items()})


class Rows(Protocol):
    """Anything with rows [N] int64."""

    @property
    def rows(self) -> Array: ...


def split(requests: Sequence[Rows], outputs: Mapping[str, Array]) -> list[BatchResult]:
    """Split the outputs [N, ...] of all requests together into those of each."""
    results: list[BatchResult] = []
    first = 0
    for request in requests:
        end = first + len(request.rows)
        results.append({name: array[first:end] for name, array in outputs.items()})
        first = end
    return results


Parsed = TypeVar("Parsed", bound=Rows)
"""A model's own form of a request that has been checked."""


class Model(Protocol[Parsed]):
    """A model behind Triton."""

    input_names: Sequence[str]
    optional: frozenset[str]
    """Inputs that a request may leave out. A request that has one is about a single row."""

    def parse(self, request: RowRequest) -> Parsed:
        """Check a request. Raises `BadInputError`."""

    def run(self, requests: Sequence[Parsed]) -> list[BatchResult]:
        """Run all rows of all requests in as few graph runs as possible. Raises if the whole batch failed."""


def run_one(model: Model[Parsed], row: int, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run one row by itself: inputs and outputs without an axis for it. Raises what is its result otherwise."""
    (result,) = model.run([model.parse(RowRequest.one(row, inputs))])
    if isinstance(result, Exception):
        raise result
    return {name: array[0] for name, array in result.items()}


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
