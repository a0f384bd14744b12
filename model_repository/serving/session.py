"""An ONNX Runtime session whose state lives in rows of preallocated buffers and is updated in place.

Every state of the graph is one array [slots, ...], bound as input and as output: a run over rows i..j binds just those
rows (they are contiguous), so no run copies or allocates a state-sized buffer, whatever the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from model_repository.serving.cpu import open_on_cpu

Array = NDArray[Any]

_DTYPES: Mapping[str, type] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int8)": np.int8,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}

MOST_BINDINGS = 256
"""Spans of rows whose bindings are kept, those used last. Of 64 slots there are 2,080 spans."""

OF_STATES = (".next", ".same")
"""Endings of the outputs that are bound to the memory of the state they are named after."""


def warm_up_sizes(slots: int) -> list[int]:
    """Batches to run once before the first caller comes: ONNX Runtime plans its memory at a shape's first run."""
    return [*(1 << power for power in range(slots.bit_length()) if 1 << power < slots), slots]


def warm_up(session: Session, run: Callable[[int], None]) -> None:
    """`run`, of so many rows, what the first callers would otherwise wait for; and see how long rows take."""
    sizes = warm_up_sizes(session.slots)
    for size in sizes:
        run(size)
    if session.supports_row_ranges and session.slots > 1:
        one, all_rows = (min(_seconds(run, size) for _ in range(2)) for size in (1, session.slots))
        a_row = max((all_rows - one) / (session.slots - 1), 1e-9)
        session.max_gap = max(one / a_row - 1, 0)


def _seconds(run: Callable[[int], None], size: int) -> float:
    began = perf_counter()
    run(size)
    return perf_counter() - began


def row_ranges(rows: Sequence[int], max_gap: float) -> list[tuple[int, int]]:
    """Ascending `rows` as runs start..stop-1, which take resting rows along where at most so many lie in between."""
    found: list[tuple[int, int]] = []
    for row in rows:
        if found and row - found[-1][1] <= max_gap:
            found[-1] = found[-1][0], row + 1
        else:
            found.append((row, row + 1))
    return found


class Session(Protocol):
    """What the models run: see `StatefulSession`, which is one on the CPU."""

    slots: int
    static: bool
    """Whether every input has a fixed shape per row, a run thus one column."""
    supports_row_ranges: bool
    """Whether a run covers the rows it is asked for and no others."""
    max_gap: float
    """How many resting rows cost less in a run than a run of their own for those behind them."""
    feeds: dict[str, Array]
    results: dict[str, Array]

    def fill(self) -> int: ...

    def reset(self, row: int) -> None: ...

    def saved(self, row: int, columns: int) -> dict[str, Array]: ...

    def restore(self, row: int, saved: Mapping[str, Array]) -> None: ...

    def run(self, start: int, stop: int, dynamic: Mapping[str, Array] | None = None) -> None: ...


class StatefulSession:
    """One graph, `slots` rows of state.

    Inputs with a fixed shape per row are arrays in `feeds` and outputs are arrays in `results`, both [slots, ...]:
    write feeds[name][row], run, read results[name][row]. Inputs with a dynamic dimension are given to `run`.
    """

    def __init__(self, model: Path, slots: int) -> None:
        self.slots = slots
        self.supports_row_ranges = True
        self.max_gap = math.inf
        self._session = open_on_cpu(model)
        self.static = True
        self._states: dict[str, Array] = {}
        self.feeds: dict[str, Array] = {}
        self.results: dict[str, Array] = {}
        for node in self._session.get_inputs():
            if any(isinstance(size, str) for size in node.shape[1:]):
                self.static = False
                continue
            array = np.zeros((slots, *node.shape[1:]), _DTYPES[node.type])
            kept = self._states if node.name.startswith(("state.", "cache.")) else self.feeds
            kept[node.name] = array
        for node in self._session.get_outputs():
            if not node.name.endswith(OF_STATES):
                self.results[node.name] = np.zeros((slots, *node.shape[1:]), _DTYPES[node.type])
        self._outputs_of = {
            name: [node.name for node in self._session.get_outputs() if node.name.rpartition(".")[0] == name]
            for name in self._states
        }
        self._binding = lru_cache(MOST_BINDINGS)(self._bind)
        # What a piece of a prompt needs for a moment, 0.1 GB of the published size, is not kept for good.
        self._of_many = ort.RunOptions()
        self._of_many.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def fill(self) -> int:
        """Write all states of all rows, so that their memory is taken; its bytes."""
        for array in self._states.values():
            array.fill(0)
        return sum(array.nbytes for array in self._states.values())

    def reset(self, row: int) -> None:
        """Zero the `state.*` states of `row`: a conversation starts there.

        The others, caches of up to a gigabyte, stay as they are: on the CPU no graph reads entries it has not written.
        """
        for name, array in self._states.items():
            if name.startswith("state."):
                array[row] = 0

    def saved(self, row: int, columns: int) -> dict[str, Array]:
        """Copies of the first `columns` entries of a row's caches, [heads, columns, head_dim] each."""
        caches = self._caches().items()
        return {name: array[row, :, :columns].copy() for name, array in caches}

    def restore(self, row: int, saved: Mapping[str, Array]) -> None:
        """Put what `saved` gave, of this or another row, at the beginning of a row's caches."""
        for name, array in self._caches().items():
            array[row, :, : saved[name].shape[1]] = saved[name]

    def run(self, start: int, stop: int, dynamic: Mapping[str, Array] | None = None) -> None:
        """Run rows start..stop-1; `dynamic` holds the inputs without a fixed shape, [rows, columns, ...] each."""
        binding = self._binding(start, stop)
        columns = 1
        for name, array in (dynamic or {}).items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
            columns = array.shape[1]
        self._session.run_with_iobinding(binding, self._of_many if columns > 1 else None)

    def _caches(self) -> dict[str, Array]:
        return {name: array for name, array in self._states.items() if name.startswith("cache.")}

    def _bind(self, start: int, stop: int) -> ort.IOBinding:
        binding = self._session.io_binding()
        for name, array in (self.feeds | self._states).items():
            value = ort.OrtValue.ortvalue_from_numpy(array[start:stop])
            binding.bind_ortvalue_input(name, value)
            if name in self._states:
                for output in self._outputs_of[name]:
                    binding.bind_ortvalue_output(output, value)
        for name, array in self.results.items():
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array[start:stop]))
        return binding
