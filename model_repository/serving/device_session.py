"""A session whose state, inputs and outputs lie on the device, and whose runs are captured and replayed.

A run covers the rows from 0 to the next of a few sizes, so that its shapes, and with binding its addresses, are the
same each time: the first run of a size is recorded, the others are replayed as a whole. A row among them that takes no
part keeps its position, and what it computes is overwritten by its next step.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from model_repository.serving.cpu import WEIGHTS_FOLDER
from model_repository.serving.device import OPERATORS, CudaMemory, DeviceError, row_bytes
from model_repository.serving.memory import check_memory
from model_repository.serving.row_request import Array
from model_repository.serving.session import ELEMENTS, OF_STATES, OFFSETS, is_state, row_shape, warm_up_sizes

CUDNN_ATTENTION = "ORT_ENABLE_CUDNN_FLASH_ATTENTION"
"""Environment variable of ONNX Runtime: 0 uses FlashAttention where it would use cuDNN, if cuDNN is there."""

_log = logging.getLogger(__name__)

_PER_COLUMN = ("columns", "embeddings")
"""Inputs of which a prefill run has a buffer of its own."""


@dataclass(frozen=True)
class _Placed:
    """A tensor [rows, ...] on the device; `host` has its shape and type, and pinned memory if rows are copied."""

    address: int
    element: int
    host: Array

    def bound(self, first: int, rows: int) -> tuple[int, list[int], int]:
        """Type, shape and address of so many rows."""
        return self.element, [rows, *self.host.shape[1:]], self.address + first * row_bytes(self.host)


@dataclass(frozen=True)
class _SavedPrefix:
    """The first `columns` entries of a row's caches, one after the other at `address`."""

    address: int
    columns: int


class DeviceSession:
    """A session on a device, for graphs in which every shape follows from the number of rows or columns.

    Steps of each size are captured. A prefill run is not: it has the addresses of its row.
    """

    chunk = 64
    """On an H200 about 5 ms, by estimate, most of it reading the weights."""
    padded = True

    def __init__(self, model: Path, slots: int, device: CudaMemory, graph: bytes | None = None) -> None:
        """`graph`: in place of the one in the file `model`, whose weights it has.

        Raises `DeviceError` if the model does not fit or would not run on the device as a whole.
        """
        check_memory(model, slots, device)
        self.slots = slots
        self.supports_row_ranges = False
        self.max_gap = math.inf
        self._device = device
        self._sizes = warm_up_sizes(slots)
        self._model = model
        self._open = partial(_open, model, device, graph)
        self._session = self._open()
        self._states: dict[str, _Placed] = {}
        self._feeds: dict[str, _Placed] = {}
        self._chunk: dict[str, _Placed] = {}
        self._results: dict[str, _Placed] = {}
        self._offsets: _Placed | None = None
        # No run writes more columns than a ring has.
        windows = [node.shape[1] for node in self._session.get_inputs() if node.name.startswith("cache.")]
        self.chunk = min([self.chunk, *windows])
        for node in self._session.get_inputs():
            if node.name == OFFSETS:
                self._offsets = self._place(ELEMENTS[node.type], (self.chunk,))
                self._offsets.host[:] = np.arange(self.chunk)
                device.upload(self._offsets.host, self._offsets.address)
                continue
            placed = self._place_rows(node, copied=not is_state(node.name))
            (self._states if is_state(node.name) else self._feeds)[node.name] = placed
            if node.name in _PER_COLUMN:
                self._chunk[node.name] = self._place(ELEMENTS[node.type], (1, *row_shape(node, self.chunk)))
        for node in self._session.get_outputs():
            if not node.name.endswith(OF_STATES):
                self._results[node.name] = self._place_rows(node)
        device.synchronize()
        self.feeds = {name: placed.host for name, placed in self._feeds.items()}
        self.results = {name: placed.host for name, placed in self._results.items()}
        self._bindings: dict[tuple[str, int], tuple[ort.IOBinding, ort.RunOptions]] = {}
        self._saved: set[int] = set()

    def close(self) -> None:
        """Give the device's memory back; the session is not to be used again."""
        self._bindings.clear()
        del self._session
        placed = [*self._states.values(), *self._feeds.values(), *self._chunk.values(), *self._results.values()]
        offsets = [] if self._offsets is None else [self._offsets]
        for address in (*(each.address for each in (*placed, *offsets)), *self._saved):
            self._device.release(address)
        self._saved.clear()

    def fill(self) -> int:
        """See `Session.fill`; the device's memory was taken at once."""
        return sum(placed.host.nbytes for placed in self._states.values())

    def reset(self, row: int) -> None:
        """Zero all states of `row`.

        Caches too: attention kernels of a device may multiply entries that are masked by 0, and 0 * NaN is NaN. A GPU
        zeroes 1.6 GB in about a millisecond.
        """
        for placed in self._states.values():
            size = row_bytes(placed.host)
            self._device.clear(placed.address + row * size, size)

    def save(self, row: int, columns: int) -> _SavedPrefix | None:
        """See `Session.save`: a copy on the device."""
        size = sum(_column_bytes(placed) for placed in self._caches()) * columns
        try:
            saved = _SavedPrefix(self._device.allocate(size), columns)
        except DeviceError:
            return None
        self._saved.add(saved.address)
        self._copy(row, saved, to_row=False)
        return saved

    def restore(self, row: int, saved: _SavedPrefix) -> None:
        """See `Session.restore`."""
        self._copy(row, saved, to_row=True)

    def discard(self, saved: _SavedPrefix) -> None:
        """See `Session.discard`."""
        self._saved.discard(saved.address)
        self._device.release(saved.address)

    def run(self, start: int, stop: int, *, embedded: bool = False) -> None:
        """See `Session.run`: rows from 0 to the next size."""
        size = next(size for size in self._sizes if size >= stop)
        for name, placed in self._feeds.items():
            if embedded or name != "embeddings":
                self._device.upload(placed.host[:size], placed.address)
        self._device.synchronize()
        self._run(("step", size), lambda: self._bind(0, size), graph=size)
        for placed in self._results.values():
            first = placed.address + start * row_bytes(placed.host)
            self._device.download(placed.host[start:stop], first)
        self._device.synchronize()

    def prefill(self, row: int, columns: Array, embeddings: Array) -> None:
        """See `Session.prefill`. Columns behind the given ones are written after them and never read: the row's next
        steps overwrite them first.
        """
        count = len(columns)
        for name, given in zip(_PER_COLUMN, (columns, embeddings), strict=True):
            placed = self._chunk[name]
            placed.host[0, :count], placed.host[0, count:] = given, 0
            self._device.upload(placed.host, placed.address)
        self.feeds["filled"][row] = self.feeds["position"][row] + self.chunk
        for name, placed in self._feeds.items():
            if name not in self._chunk:
                self._device.upload(placed.host[row : row + 1], placed.address + row * row_bytes(placed.host))
        self._device.synchronize()
        self._run(("chunk", row), lambda: self._bind(row, 1, self._chunk, self.chunk), graph=_NOT_CAPTURED)

    def _run(self, key: tuple[str, int], bind: Callable[[], ort.IOBinding], graph: int) -> None:
        """Run with the binding `key`, which `bind` makes for its first run.

        cuDNN may refuse the attention of a shape, and ONNX Runtime then fails instead of using FlashAttention. If a
        first run fails, the session is made anew without cuDNN's attention.
        """
        first = key not in self._bindings
        if first:
            self._bindings[key] = bind(), _run_options(graph)
        try:
            self._session.run_with_iobinding(*self._bindings[key])
            return
        except Exception as error:  # ONNX Runtime's own classes have no common base
            if not first or os.environ.get(CUDNN_ATTENTION) == "0":
                raise
            _log.warning("%s: a first run failed: goes on with %s=0: %s", self._model, CUDNN_ATTENTION, error)
        # Not in the handler: the error holds the session, and there is no memory for two.
        os.environ[CUDNN_ATTENTION] = "0"
        self._bindings.clear()
        del self._session
        self._session = self._open()
        self._run(key, bind, graph)

    def _caches(self) -> list[_Placed]:
        return [placed for name, placed in self._states.items() if name.startswith("cache.")]

    def _copy(self, row: int, saved: _SavedPrefix, to_row: bool) -> None:
        """Copy between a row's caches [window, dim], whose first columns are contiguous, and a saved prefix."""
        address = saved.address
        for placed in self._caches():
            size = saved.columns * _column_bytes(placed)
            of_row = placed.address + row * row_bytes(placed.host)
            self._device.copy(*((address, of_row) if to_row else (of_row, address)), size)
            address += size
        self._device.synchronize()

    def _place_rows(self, node: Any, copied: bool = True) -> _Placed:
        shape = row_shape(node)
        if any(isinstance(size, str) for size in shape):
            raise DeviceError(f"{node.name}: expected a shape that follows from rows and columns, got {node.shape}")
        return self._place(ELEMENTS[node.type], (self.slots, *shape), copied)

    def _place(self, kind: tuple[int, type], shape: tuple[int, ...], copied: bool = True) -> _Placed:
        element, dtype = kind
        host = self._device.pinned(shape, dtype) if copied else np.broadcast_to(np.zeros((), dtype), shape)
        return _Placed(self._device.allocate(host.nbytes), element, host)

    def _bind(
        self, first: int, rows: int, chunk: Mapping[str, _Placed] | None = None, columns: int = 1
    ) -> ort.IOBinding:
        """Bind so many rows from `first` on; `chunk`: inputs with another number of columns, of one row."""
        binding = self._session.io_binding()
        where = (self._device.kind, self._device.index)
        for name, placed in (self._feeds | self._states).items():
            given = (chunk or {}).get(name)
            binding.bind_input(name, *where, *(placed.bound(first, rows) if given is None else given.bound(0, 1)))
        if self._offsets is not None:
            binding.bind_input(OFFSETS, *where, self._offsets.element, [columns], self._offsets.address)
        for node in self._session.get_outputs():
            of_state = node.name.rpartition(".")[0] if node.name.endswith(OF_STATES) else None
            placed = self._states[of_state] if of_state else self._results[node.name]
            binding.bind_output(node.name, *where, *placed.bound(first, rows))
        return binding


_NOT_CAPTURED = -1
"""In place of the number of a CUDA graph: a run that is neither captured nor replayed."""


def _run_options(graph: int) -> ort.RunOptions:
    """Options of a run that is captured as this CUDA graph, and replayed later; elsewhere they have no effect."""
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options


def _column_bytes(placed: _Placed) -> int:
    """Bytes of one entry of a cache [slots, window, dim]."""
    return int(placed.host.shape[2]) * placed.host.itemsize


_DISABLED_OPTIMIZERS = ["GatherSliceToSplitFusion"]
"""It makes a Split of Slices that lie side by side. An unequal Split along an inner axis reads the addresses of its
results from host memory, which the captures of all sizes share: a replay would write where the last captured size does.
"""


_INT8_KV = b"Int8KvAttention"
"""Operator of a graph with int8 keys and values; nothing else in a graph has this name."""


def _open(model: Path, device: CudaMemory, graph: bytes | None) -> ort.InferenceSession:
    """Raises `DeviceError` if ONNX Runtime falls back to another device, as a whole or for single operators."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry(WEIGHTS_FOLDER, str(model.parent))
    if device.operators is not None:
        options.register_custom_ops_library(str(device.operators))
    elif _INT8_KV in (graph or model.read_bytes()):
        _log.warning("%s: %s was not built: every step makes all keys and values float32", model, OPERATORS.name)
    wanted = [name for name, _ in device.providers]
    if wanted != ["CPUExecutionProvider"]:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    providers = [(name, dict(given)) for name, given in device.providers]
    try:
        session = ort.InferenceSession(
            graph or str(model), options, providers=providers, disabled_optimizers=_DISABLED_OPTIMIZERS
        )
    except Exception as error:  # ONNX Runtime's own classes have no common base
        raise DeviceError(f"{model.parents[1].name}: expected to run on {wanted[0]} as a whole: {error}") from error
    if session.get_providers()[0] != wanted[0]:
        raise DeviceError(f"{model.parents[1].name}: expected to run on {wanted[0]}, which could not be loaded")
    return session
