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

from model_repository.serving.cpu import open_on_cpu
from model_repository.serving.row_request import Array

ELEMENTS: Mapping[str, tuple[int, type]] = {
    "tensor(float)": (1, np.float32),
    "tensor(int8)": (3, np.int8),
    "tensor(int64)": (7, np.int64),
    "tensor(bool)": (9, np.bool_),
    "tensor(float16)": (10, np.float16),
    # NumPy has no such type: its bytes are only moved.
    "tensor(bfloat16)": (16, np.uint16),
}
"""ONNX's numbers (TensorProto.DataType) for what ONNX Runtime calls element types, and what they are on the host."""

MOST_BINDINGS = 256
"""Spans of rows whose bindings are kept, those used last. Of 64 slots there are 2,080 spans."""

OF_STATES = (".next", ".same")
"""Endings of the outputs that are bound to the memory of the state they are named after."""


COLUMNS = "columns"
"""Name of a graph's dynamic dimension of positions in time."""

OFFSETS = "offsets"
"""Input [columns] int64: 0, 1, 2..., the same for all rows."""


def is_state(name: str) -> bool:
    """Whether an input of a graph is state, which the graph updates."""
    return name.startswith(("state.", "cache."))


def row_shape(node: Any, columns: int = 1) -> tuple[int, ...]:
    """Shape of a row of an input or output, with so many columns where that is dynamic."""
    return tuple(columns if size == COLUMNS else size for size in node.shape[1:])


def warm_up_sizes(slots: int) -> list[int]:
    """Batch sizes: 1, 2, 4, multiples of 8, and all slots. Each is run once before the first conversation, because ONNX
    Runtime plans its memory at a shape's first run; on a device a run is padded to the next of them.
    """
    return [*(size for size in (1, 2, 4, *range(8, slots, 8)) if size < slots), slots]


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
    """One graph with `slots` rows of state.

    Inputs are arrays in `feeds` and outputs are arrays in `results`, both [slots, ...]: write feeds[name][row], run,
    read results[name][row]. Inputs with a dynamic number of columns have one there.
    """

    slots: int
    chunk: int
    """Most columns of a prefill run."""
    padded: bool
    """Whether a prefill run always has `chunk` columns, so that its outputs are not those of the last column given."""
    supports_row_ranges: bool
    """Whether a run covers the rows it is asked for and no others."""
    max_gap: float
    """How many resting rows cost less in a run than a run of their own for those behind them."""
    feeds: dict[str, Array]
    results: dict[str, Array]

    def fill(self) -> int:
        """Write all states of all rows, so that their memory is taken; return its bytes."""

    def reset(self, row: int) -> None:
        """Clean `row` for a new conversation."""

    def save(self, row: int, columns: int) -> Any:
        """Copy the first `columns` entries of a row's caches; None if there is no memory for them."""

    def restore(self, row: int, saved: Any) -> None:
        """Put what `save` returned, of this or another row, at the beginning of a row's caches."""

    def discard(self, saved: Any) -> None:
        """Free what `save` returned."""

    def run(self, start: int, stop: int, *, embedded: bool = False) -> None:
        """Run one column of at least the rows start..stop-1. `embedded`: the input `embeddings` is used."""

    def prefill(self, row: int, columns: Array, embeddings: Array) -> None:
        """Run columns [S, 17] of one row, with embeddings [S, dim] where the first token is -1.

        position + S, or position + `chunk` if runs are padded, must not be beyond the window.
        """


class StatefulSession:
    """A session on the CPU. See `Session`."""

    chunk = 128
    """Enough to be bound by arithmetic, few enough for small intermediate tensors (the scores of attention alone are
    chunk x window for each head)."""
    padded = False

    def __init__(self, model: Path, slots: int, graph: bytes | None = None) -> None:
        """`graph`: in place of the one in the file `model`, whose weights it has."""
        self.slots = slots
        self.supports_row_ranges = True
        self.max_gap = math.inf
        self._session = open_on_cpu(model, graph)
        self._states: dict[str, Array] = {}
        self._offsets: Array | None = None
        self.feeds: dict[str, Array] = {}
        self.results: dict[str, Array] = {}
        for node in self._session.get_inputs():
            if node.name == OFFSETS:
                self._offsets = np.arange(self.chunk)
                continue
            kept = self._states if is_state(node.name) else self.feeds
            kept[node.name] = np.zeros((slots, *row_shape(node)), ELEMENTS[node.type][1])
        for node in self._session.get_outputs():
            if not node.name.endswith(OF_STATES):
                self.results[node.name] = np.zeros((slots, *row_shape(node)), ELEMENTS[node.type][1])
        self._outputs_of = {
            name: [node.name for node in self._session.get_outputs() if node.name.rpartition(".")[0] == name]
            for name in self._states
        }
        self._binding = lru_cache(MOST_BINDINGS)(self._bind)
        # What a piece of a prompt needs for a moment, 0.1 GB of the published size, is not kept for good.
        self._of_many = ort.RunOptions()
        self._of_many.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def fill(self) -> int:
        """See `Session.fill`."""
        for array in self._states.values():
            array.fill(0)
        return sum(array.nbytes for array in self._states.values())

    def reset(self, row: int) -> None:
        """Zero the `state.*` states of `row`.

        The others, caches of up to a gigabyte, stay as they are: on the CPU no graph reads entries it has not written.
        """
        for name, array in self._states.items():
            if name.startswith("state."):
                array[row] = 0

    def save(self, row: int, columns: int) -> dict[str, Array]:
        """See `Session.save`: [heads, columns, head_dim] by name."""
        return {name: array[row, :, :columns].copy() for name, array in self._caches().items()}

    def restore(self, row: int, saved: Mapping[str, Array]) -> None:
        """See `Session.restore`."""
        for name, array in self._caches().items():
            array[row, :, : saved[name].shape[1]] = saved[name]

    def discard(self, saved: Mapping[str, Array]) -> None:
        """See `Session.discard`: nothing to do."""

    def run(self, start: int, stop: int, *, embedded: bool = False) -> None:
        """See `Session.run`: exactly these rows."""
        self._session.run_with_iobinding(self._binding(start, stop))

    def prefill(self, row: int, columns: Array, embeddings: Array) -> None:
        """See `Session.prefill`."""
        self.feeds["filled"][row] = self.feeds["position"][row] + len(columns)
        binding = self._bind(row, row + 1)
        chunk = {"columns": columns, "embeddings": embeddings, OFFSETS: np.arange(len(columns))}
        for name, array in chunk.items():
            contiguous = np.ascontiguousarray(array if name == OFFSETS else array[None])
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(contiguous))
        self._session.run_with_iobinding(binding, self._of_many)

    def _caches(self) -> dict[str, Array]:
        return {name: array for name, array in self._states.items() if name.startswith("cache.")}

    def _bind(self, start: int, stop: int) -> ort.IOBinding:
        binding = self._session.io_binding()
        if self._offsets is not None:
            binding.bind_ortvalue_input(OFFSETS, ort.OrtValue.ortvalue_from_numpy(self._offsets[:1]))
        for name, array in (self.feeds | self._states).items():
            value = ort.OrtValue.ortvalue_from_numpy(array[start:stop])
            binding.bind_ortvalue_input(name, value)
            if name in self._states:
                for output in self._outputs_of[name]:
                    binding.bind_ortvalue_output(output, value)
        for name, array in self.results.items():
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array[start:stop]))
        return binding
