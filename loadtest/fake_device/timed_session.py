"""A session that takes a configured time per run instead of computing: for load tests of everything around the models.

Inputs, outputs, rows and states are those of a real session on a device. Outputs are a cheap function of the inputs
and of the row's past, so that a mix-up between conversations changes what they receive. A run blocks in `sleep`, as a
session waits for a device: it holds neither the GIL nor a core.
"""

from __future__ import annotations

import fcntl
import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from model_repository.serving.session import warm_up_sizes

Array = NDArray[Any]

SIGNATURE = "signature.json"
"""Beside where the graph would be: {"inputs": {name: [dtype, shape]}, "outputs": {name: [dtype, shape, limit]}}. Shapes
are those of one row; `limit` bounds integers, exclusively."""

LOCK = "device.lock"
"""In the folder of all models: the process that holds its lock uses the device."""

_NOT_HASHED = ("position", "filled", "active")
_PER_COLUMN = ("columns", "embeddings")
_SAMPLES = 256
"""Elements of a row of an input that its outputs depend on, evenly spread: enough to tell rows apart."""
_TABLE_ROWS = 64
_MULTIPLIER = np.uint64(6364136223846793005)
"""Of the linear congruential generator of Knuth's MMIX."""


@dataclass(frozen=True)
class Timing:
    """Seconds that a run takes: `run` + `row` x rows + `position` x filled positions of all rows of the run.

    restore: seconds per position of a prefix that is copied into a row. window: positions of a full row; 0 for models
    whose time does not depend on them. full_windows: whether rows that take part count as full from their second
    position on.
    """

    run: float
    row: float
    position: float = 0.0
    restore: float = 0.0
    window: int = 0
    full_windows: bool = False

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> Timing:
        """From the parameters of a model's config, each named `timing.FIELD`. Raises KeyError if one is missing."""
        values: dict[str, Any] = {field.name: parameters[f"timing.{field.name}"] for field in fields(cls)}
        numbers = {name: float(values[name]) for name in ("run", "row", "position", "restore")}
        return cls(**numbers, window=int(values["window"]), full_windows=values["full_windows"] == "1")

    def parameters(self) -> dict[str, str]:
        """The inverse of `of`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            f"timing.{name}": str(int(value)) if isinstance(value, bool) else repr(value)
            for name, value in values.items()
        }

    def seconds(self, filled: Array) -> float:
        """Of a run over rows of which attention reads `filled` [rows] int64 positions each."""
        read = np.where(filled > 1, self.window, filled) if self.full_windows else filled
        return self.run + self.row * len(filled) + self.position * (int(read.sum()) if self.window else 0)


class TimedSession:
    """See `Session`. As on a device, a run covers the rows from 0 to the next of a few sizes."""

    chunk = 64
    padded = True

    def __init__(self, model: Path, slots: int, timing: Timing) -> None:
        """`model`: where the graph would be; SIGNATURE lies beside it."""
        signature = json.loads(model.with_name(SIGNATURE).read_text())
        self.slots = slots
        self.supports_row_ranges = False
        self.max_gap = math.inf
        self._timing = timing
        self._sizes = warm_up_sizes(slots)
        self._lock: IO[bytes] = (model.parents[2] / LOCK).open("ab")
        self.feeds = {name: np.zeros((slots, *shape), dtype) for name, (dtype, shape) in signature["inputs"].items()}
        self.results = {
            name: np.zeros((slots, *shape), dtype) for name, (dtype, shape, _) in signature["outputs"].items()
        }
        self._limits = {name: limit for name, (_, _, limit) in signature["outputs"].items()}
        random = np.random.default_rng(0)
        self._tables = {
            name: (0.05 * random.standard_normal((_TABLE_ROWS, *array.shape[1:]))).astype(np.float32)
            for name, array in self.results.items()
            if array.dtype == np.float32
        }
        # A row's past, as of position `_at`; `_next` includes the run at `_at` and counts once the position has moved.
        self._past, self._next = np.zeros(slots, np.uint64), np.zeros(slots, np.uint64)
        self._at = np.full(slots, -1, np.int64)

    def fill(self) -> int:
        """See `Session.fill`: no state is kept but a number per row."""
        return 0

    def reset(self, row: int) -> None:
        """Forget the past of `row`."""
        self._past[row] = self._next[row] = 0
        self._at[row] = -1

    def save(self, row: int, columns: int) -> tuple[Array, int]:
        """The past of a row at its position, which must be `columns`."""
        moved = self.feeds["position"][row] != self._at[row]
        return (self._next if moved else self._past)[row : row + 1].copy(), columns

    def restore(self, row: int, saved: tuple[Array, int]) -> None:
        """Give a row the past that `save` returned, of this or another row."""
        past, columns = saved
        self._past[row] = self._next[row] = past[0]
        self._at[row] = -1
        time.sleep(self._timing.restore * columns)

    def discard(self, saved: tuple[Array, int]) -> None:
        """See `Session.discard`: nothing to do."""

    def run(self, start: int, stop: int, *, embedded: bool = False) -> None:
        """See `Session.run`; takes the configured time."""
        inputs = {name: array[start:stop] for name, array in self.feeds.items()}
        if "embeddings" in inputs and not embedded:
            inputs["embeddings"] = np.zeros_like(inputs["embeddings"])
        size = next(size for size in self._sizes if size >= stop)
        filled = self.feeds.get("filled", np.zeros(size, np.int64))[:size]
        with self._device(self._timing.seconds(filled)):
            state = self._advance(start, stop, inputs)
            for name, result in self.results.items():
                result[start:stop] = self._output(name, state, result.shape[1:])

    def prefill(self, row: int, columns: Array, embeddings: Array) -> None:
        """See `Session.prefill`; takes the configured time of one row."""
        inputs = {name: array[row : row + 1] for name, array in self.feeds.items()}
        filled = self.feeds["position"][row : row + 1] + self.chunk
        with self._device(self._timing.seconds(filled)):
            self._advance(row, row + 1, inputs | {"columns": columns[None], "embeddings": embeddings[None]})

    @contextmanager
    def _device(self, seconds: float) -> Iterator[None]:
        """Hold the device, which all models share, for `seconds`, what is done inside included."""
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            until = time.perf_counter() + seconds
            yield
            time.sleep(max(0.0, until - time.perf_counter()))
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _advance(self, start: int, stop: int, inputs: Mapping[str, Array]) -> Array:
        """The rows' state [rows] uint64 after `inputs`, which follow their past."""
        rows = slice(start, stop)
        if "position" not in inputs:
            return _mixed(np.zeros(stop - start, np.uint64), _hash(inputs))
        moved = inputs["position"] != self._at[rows]
        self._past[rows][moved] = self._next[rows][moved]
        self._at[rows] = inputs["position"]
        state = self._past[rows].copy()
        if "columns" not in inputs:
            self._next[rows] = state = _mixed(state, _hash(inputs))
            return state
        for column in range(inputs["columns"].shape[1]):
            state = _mixed(state, _hash({name: inputs[name][:, column] for name in _PER_COLUMN}))
        self._next[rows] = state
        # The sampler's inputs change what is sampled, not what is remembered.
        return _mixed(state, _hash({name: array for name, array in inputs.items() if name not in _PER_COLUMN}))

    def _output(self, name: str, state: Array, shape: tuple[int, ...]) -> Array:
        if name in self._tables:
            values: Array = self._tables[name][(state >> np.uint64(40)) % np.uint64(_TABLE_ROWS)]
            values[:, 0] = (state >> np.uint64(48)).astype(np.float32) * np.float32(2.0**-20)
            return values
        count = math.prod(shape)
        several = np.stack([_mixed(state, np.uint64(index)) for index in range(count)], axis=1)
        integers: Array = ((several >> np.uint64(33)) % np.uint64(self._limits[name])).astype(np.int64)
        return integers.reshape(len(state), *shape)


def _mixed(state: Array, value: Array | np.uint64) -> Array:
    with np.errstate(over="ignore"):
        mixed: Array = (state ^ value) * _MULTIPLIER + np.uint64(1)
    shifted: Array = mixed ^ (mixed >> np.uint64(29))
    return shifted


def _hash(inputs: Mapping[str, Array]) -> Array:
    """One number per row [rows] uint64, of inputs [rows, ...]; exact, so that it is the same in any company."""
    total: Array | np.uint64 = np.uint64(0)
    for name in sorted(inputs):
        if name in _NOT_HASHED:
            continue
        array = inputs[name]
        rows = np.ascontiguousarray(array.reshape(len(array), -1))
        rows = rows[:, :: max(1, rows.shape[1] // _SAMPLES)]
        numbers = np.ascontiguousarray(rows).view(np.uint32 if rows.itemsize == 4 else np.uint64).astype(np.uint64)
        weights = np.arange(1, 2 * numbers.shape[1], 2, dtype=np.uint64)
        with np.errstate(over="ignore"):
            total = _mixed((numbers * weights).sum(axis=1, dtype=np.uint64), total)
    return np.asarray(total, np.uint64)
