"""Whether a model and the state of its slots fit into memory, said before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model_repository.serving.device import CudaMemory, DeviceError
from model_repository.serving.host import HostMemory
from model_repository.serving.prefix import most_columns

GIB = 1 << 30

DEVICE_WORKSPACE_BYTES = GIB
"""Of a process on a GPU besides its weights and states: CUDA's own context takes half a gigabyte, its libraries'
workspaces and the graph's intermediate tensors the rest."""

HOST_WORKSPACE_BYTES = GIB // 10
"""Of a process on a CPU: Python and ONNX Runtime."""

WORKSPACE_SHARE = 0.1
"""Of the weights, on top: rounded matrices are unpacked one at a time."""

_STATES = ("state.", "cache.")


class MemoryShortageError(DeviceError):
    """There is less memory than the slots need."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes a model takes: `weights` and `workspace` once, `slot` for each conversation."""

    weights: int
    slot: int
    workspace: int

    @classmethod
    def of(cls, model: Path, *, on_cpu: bool = False) -> MemoryEstimate:
        """Of a graph with its weights beside it, neither of which is loaded for it."""
        import onnx

        graph = onnx.load(model, load_external_data=False).graph
        slot = sum(_row_bytes(value) for value in graph.input if value.name.startswith(_STATES))
        data = model.with_name(model.name + ".data")
        weights = data.stat().st_size if data.exists() else 0
        if on_cpu:
            weights += _widened_bytes(graph)
        process = HOST_WORKSPACE_BYTES if on_cpu else DEVICE_WORKSPACE_BYTES + _prefix_bytes(graph)
        return cls(weights, slot, process + round(WORKSPACE_SHARE * weights))

    def total(self, slots: int) -> int:
        return self.weights + self.workspace + slots * self.slot

    def fitting(self, there: int) -> int:
        """Slots that fit into so many bytes; negative if not even the weights do."""
        return (there - self.total(0)) // self.slot if self.slot else 0

    def __add__(self, other: MemoryEstimate) -> MemoryEstimate:
        return MemoryEstimate(self.weights + other.weights, self.slot + other.slot, self.workspace + other.workspace)


def check_memory(model: Path, slots: int, memory: CudaMemory | HostMemory) -> None:
    """Raises `MemoryShortageError` unless the graph `model` with so many slots fits, and those it is served with, too.

    All of a repository's models are loaded at once: what is free says little of who of them will have it.
    """
    on_cpu = isinstance(memory, HostMemory)
    what, where = ("memory", "machine") if on_cpu else ("device memory", "device")
    together = sorted(model.parents[2].glob(f"*/{model.parent.name}/{model.name}"))
    if len(together) > 1:
        needs = [MemoryEstimate.of(each, on_cpu=on_cpu) for each in together]
        whole = sum(needs[1:], start=needs[0])
        name = f"the {len(together)} models together"
        _require(name, whole, slots, memory.total(), what, f"and the {where} has {{}}")
    _require(
        model.parents[1].name,
        MemoryEstimate.of(model, on_cpu=on_cpu),
        slots,
        memory.free(),
        what,
        "of which {} are free",
    )


def _require(name: str, needs: MemoryEstimate, slots: int, there: int, what: str, said: str) -> None:
    """`there`: bytes of `what`; `said`: what a refusal calls them, {} being gigabytes."""
    if needs.total(slots) <= there:
        return
    need = (
        f"{name}: {'1 slot needs' if slots == 1 else f'{slots} slots need'} "
        f"{_gigabytes(needs.total(slots))} GB of {what} "
        f"(weights {_gigabytes(needs.weights)}, each slot {_gigabytes(needs.slot)}, "
        f"workspace {_gigabytes(needs.workspace)}) {said.format(_gigabytes(there))}"
    )
    fitting = needs.fitting(there)
    if fitting < 1:
        raise MemoryShortageError(f"{need}: not even one slot fits; build a smaller variant or free memory")
    raise MemoryShortageError(f"{need}; build with --slots {fitting}")


def _prefix_bytes(graph: Any) -> int:
    """Of the prompt prefixes that are kept on a device, where caches are [rows, window, dim]."""
    caches = [value for value in graph.input if value.name.startswith("cache.")]
    if not caches:
        return 0
    window = int(caches[0].type.tensor_type.shape.dim[1].dim_value)
    return sum(map(_row_bytes, caches)) * most_columns(window) // window


def _widened_bytes(graph: Any) -> int:
    """Of 16-bit matrices as float32, which a session on a CPU makes of them when it is opened."""
    casts = {node.input[0] for node in graph.node if node.op_type == "Cast"}
    return sum(4 * math.prod(tensor.dims) for tensor in graph.initializer if tensor.name in casts)


def _row_bytes(value: object) -> int:
    """Of one row of a graph input whose first axis are the rows."""
    import onnx

    tensor = value.type.tensor_type  # type: ignore[attr-defined]
    itemsize = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize
    return int(np.prod([size.dim_value for size in tensor.shape.dim[1:]], dtype=np.int64)) * int(itemsize)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f}" if size >= 5e7 else f"{size / 1e9:.3f}"
