"""What a model is asked in one execution and what it answers, row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class BadInputError(ValueError):
    """A request's tensor is not what the model takes; answered to that request alone, and nothing was done for it."""


@dataclass(frozen=True)
class Turn:
    """What one row is asked to do; `inputs` are arrays without a batch dimension, valid during the execution.

    With direct sequence batching a row is the same conversation for as long as that lasts.
    """

    row: int
    start: bool
    inputs: Mapping[str, Array]


@dataclass
class Outcome:
    """Answers by row; a row with an error answers just that."""

    outputs: dict[int, Mapping[str, Array]] = field(default_factory=dict)
    errors: dict[int, Exception] = field(default_factory=dict)


class Model(Protocol):
    """What Triton hands requests to."""

    input_names: Sequence[str]
    optional: frozenset[str]
    """Inputs that a request may leave out."""

    def check(self, turn: Turn) -> None:
        """Raise `BadInputError` if a tensor is not what the model takes."""

    def run(self, turns: Sequence[Turn]) -> Outcome:
        """Do every row's turn, each of them checked, in as few graph runs as possible. Raises only if the whole batch
        failed.
        """


def check(array: Array, name: str, dtype: type, shape: tuple[int, ...], high: int | None = None) -> None:
    """Raise `BadInputError` unless array has dtype and shape (-1: any) and, if `high` is given, values 0..high-1."""
    # Once per tensor, row and frame: what is as it should be leaves after two comparisons.
    if array.dtype != dtype or (array.shape != shape and not _fits(array.shape, shape)):
        raise BadInputError(
            f"{name}: expected {np.dtype(dtype).name} of shape {list(shape)}, "
            f"got {array.dtype.name} {list(array.shape)}"
        )
    # As unsigned numbers negative ones are the largest.
    if high is not None and array.size and array.view(np.uint64).max() >= high:
        raise BadInputError(f"{name}: values must be in 0..{high - 1}, got {array.min()}..{array.max()}")


def _fits(got: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(got) == len(wanted) and all(want in (-1, size) for want, size in zip(wanted, got, strict=True))
