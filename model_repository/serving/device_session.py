"""A session whose state, inputs and outputs lie on the device, and whose runs are captured and replayed.

A run covers the rows from 0 to the next of a few sizes, so that its shapes, and with binding its addresses, are the
same each time: the first run of a size is recorded, the others are replayed as a whole. A row among them that takes no
part keeps its position, and what it computes is overwritten by its next step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from model_repository.serving.device import DeviceError, DeviceMemory, row_bytes
from model_repository.serving.room import require_room
from model_repository.serving.session import OF_STATES, warm_up_sizes

Array = NDArray[Any]

_ELEMENTS: Mapping[str, tuple[int, type]] = {
    "tensor(float)": (1, np.float32),
    "tensor(int8)": (3, np.int8),
    "tensor(int64)": (7, np.int64),
    "tensor(bool)": (9, np.bool_),
    "tensor(float16)": (10, np.float16),
    # NumPy has no such type: its bytes are only moved.
    "tensor(bfloat16)": (16, np.uint16),
}
"""ONNX's numbers (TensorProto.DataType) for what ONNX Runtime calls element types, and what they are on the host."""


@dataclass(frozen=True)
class _Placed:
    """A tensor of all slots on the device; `host` has its shape and type, and memory of its own if rows are copied."""

    address: int
    element: int
    host: Array

    def bound(self, size: int) -> tuple[int, list[int], int]:
        """What a binding of the first `size` rows is told."""
        return self.element, [size, *self.host.shape[1:]], self.address


class DeviceSession:
    """As `StatefulSession`, for graphs in which every shape follows from the number of rows."""

    def __init__(self, model: Path, slots: int, device: DeviceMemory) -> None:
        """Raises `DeviceError` if the model does not fit or would not run on the device as a whole."""
        require_room(model, slots, device)
        self.slots = slots
        self.static = True
        self.supports_row_ranges = False
        self.max_gap = math.inf
        self._device = device
        self._sizes = warm_up_sizes(slots)
        self._session = _open(model, device)
        self._states: dict[str, _Placed] = {}
        self._feeds: dict[str, _Placed] = {}
        self._results: dict[str, _Placed] = {}
        for node in self._session.get_inputs():
            if node.name.startswith(("state.", "cache.")):
                self._states[node.name] = self._place(node, copied=False)
            else:
                self._feeds[node.name] = self._place(node)
        for node in self._session.get_outputs():
            if not node.name.endswith(OF_STATES):
                self._results[node.name] = self._place(node)
        device.settle()
        self.feeds = {name: placed.host for name, placed in self._feeds.items()}
        self.results = {name: placed.host for name, placed in self._results.items()}
        self._bindings: dict[int, tuple[ort.IOBinding, ort.RunOptions]] = {}

    def close(self) -> None:
        """Give the device's memory back; the session is not to be used again."""
        self._bindings.clear()
        del self._session
        for placed in (*self._states.values(), *self._feeds.values(), *self._results.values()):
            self._device.release(placed.address)

    def fill(self) -> int:
        """As `StatefulSession.fill`; the device's memory was taken at once."""
        return sum(placed.host.nbytes for placed in self._states.values())

    def reset(self, row: int) -> None:
        """Zero all states of `row`: a conversation starts there.

        Caches too: attention kernels of a device may multiply entries that are masked by 0, and 0 * NaN is NaN. A GPU
        zeroes 1.6 GB in about a millisecond.
        """
        for placed in self._states.values():
            size = row_bytes(placed.host)
            self._device.clear(placed.address + row * size, size)

    def saved(self, row: int, columns: int) -> dict[str, Array]:
        """As `StatefulSession.saved`, in the host's memory."""
        saved = {}
        for name, placed in self._caches().items():
            heads, _, width = placed.host.shape[1:]
            saved[name] = np.empty((heads, columns, width), placed.host.dtype)
            if columns:
                self._device.download(saved[name], *_beginning(placed, row))
        return saved

    def restore(self, row: int, saved: Mapping[str, Array]) -> None:
        """As `StatefulSession.restore`."""
        for name, placed in self._caches().items():
            if saved[name].size:
                self._device.upload(np.ascontiguousarray(saved[name]), *_beginning(placed, row))

    def run(self, start: int, stop: int, dynamic: Mapping[str, Array] | None = None) -> None:
        """Run at least rows start..stop-1; `dynamic` holds inputs of those rows, copied to their feeds."""
        for name, array in (dynamic or {}).items():
            self.feeds[name][start:stop] = array
        size = next(size for size in self._sizes if size >= stop)
        if size not in self._bindings:
            self._bindings[size] = self._bind(size)
        for placed in self._feeds.values():
            self._device.upload(placed.host[:size], placed.address)
        self._device.settle()
        self._session.run_with_iobinding(*self._bindings[size])
        for placed in self._results.values():
            first = placed.address + start * row_bytes(placed.host)
            self._device.download(placed.host[start:stop], first)

    def _caches(self) -> dict[str, _Placed]:
        return {name: placed for name, placed in self._states.items() if name.startswith("cache.")}

    def _place(self, node: Any, copied: bool = True) -> _Placed:
        if any(isinstance(size, str) for size in node.shape[1:]):
            raise DeviceError(f"{node.name}: expected a shape that follows from the number of rows, got {node.shape}")
        element, dtype = _ELEMENTS[node.type]
        shape = (self.slots, *node.shape[1:])
        host = np.zeros(shape, dtype) if copied else np.broadcast_to(np.zeros((), dtype), shape)
        return _Placed(self._device.allocate(host.nbytes), element, host)

    def _bind(self, size: int) -> tuple[ort.IOBinding, ort.RunOptions]:
        binding = self._session.io_binding()
        where = (self._device.kind, self._device.index)
        for name, placed in (self._feeds | self._states).items():
            binding.bind_input(name, *where, *placed.bound(size))
        for node in self._session.get_outputs():
            of_state = node.name.rpartition(".")[0] if node.name.endswith(OF_STATES) else None
            placed = self._states[of_state] if of_state else self._results[node.name]
            binding.bind_output(node.name, *where, *placed.bound(size))
        options = ort.RunOptions()
        # Each size is a graph of its own; without capturing the entry says nothing.
        options.add_run_config_entry("gpu_graph_id", str(size))
        return binding, options


def _beginning(placed: _Placed, row: int) -> tuple[int, int]:
    """Where a row of a cache [slots, heads, window, width] begins, and bytes from one head to the next."""
    head = placed.host.itemsize * int(np.prod(placed.host.shape[2:], dtype=np.int64))
    return placed.address + row * row_bytes(placed.host), head


def _open(model: Path, device: DeviceMemory) -> ort.InferenceSession:
    """Raises `DeviceError` if ONNX Runtime falls back to another device, as a whole or for single operators."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    wanted = [name for name, _ in device.providers]
    if wanted != ["CPUExecutionProvider"]:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    providers = [(name, dict(given)) for name, given in device.providers]
    try:
        session = ort.InferenceSession(str(model), options, providers=providers)
    except Exception as error:  # ONNX Runtime's own classes have no common base
        raise DeviceError(f"{model.parents[1].name}: expected to run on {wanted[0]} as a whole: {error}") from error
    if session.get_providers()[0] != wanted[0]:
        raise DeviceError(f"{model.parents[1].name}: expected to run on {wanted[0]}, which could not be loaded")
    return session
