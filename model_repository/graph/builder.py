"""An ONNX graph under construction whose weights stay on disk until the file is written.

Weights are declared first: a checkpoint tensor is read and quantized while the graph is saved, one at a time, and
dropped again. State is a pair of graph input and output with the names `NAME` and `NAME.next`; the serving side
binds both to the same memory, so that a state is updated in place. START zeroes a row's `state.*` states. It may leave
`cache.*` states as they are: the graph never reads an entry of them that the conversation has not written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from numpy.typing import NDArray
from onnxscript import GraphBuilder

from model_repository.quantize.blocks import TensorError

Value = Any
"""An `onnx_ir.Value`: the builder's operators are created by name at run time, so they cannot be typed."""

Float32 = NDArray[np.float32]

OPSET = 24
"""First opset with TensorScatter."""

_ALIGNMENT = 4096
"""Bytes; ONNX Runtime maps weights into memory page by page."""

_STATES = ("state.", "cache.")

ROWS = "rows"
"""Name of the batch dimension of every graph."""

COLUMNS = "columns"
"""Name of the dimension of positions in time, where it is dynamic."""


class Graph:
    """One model's graph: `op` holds ONNX operators, `contrib` those of `com.microsoft`."""

    def __init__(self, name: str) -> None:
        self._graph = ir.Graph([], [], nodes=[], name=name, opset_imports={"": OPSET, "com.microsoft": 1})
        self._builder = GraphBuilder(self._graph)
        self.op: Any = self._builder.op
        self.contrib: Any = self._builder.opset("com.microsoft", 1)
        self._constants: dict[tuple[str, bytes, tuple[int, ...]], Value] = {}
        self._groups: dict[str, _Group] = {}
        self._functions: dict[str, ir.Function] = {}
        self._choices = 0

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> Value:
        """Declare a graph input; strings name dynamic dimensions."""
        return self._builder.input(name, dtype, list(shape))

    def output(self, name: str, value: Value) -> None:
        """Declare `value` as the graph output `name`."""
        self._builder.add_output(value, name)

    def state(
        self, name: str, shape: Sequence[int], dtype: ir.DataType = ir.DataType.FLOAT, zeroed: bool = True
    ) -> Value:
        """Declare a state of `shape` per row; its value before this run, [rows, *shape]. START zeroes it, if `zeroed`:
        a state of which no entry is read before it is written needs that not.
        """
        return self.input(f"{'state' if zeroed else 'cache'}.{name}", dtype, [ROWS, *shape])

    def update(self, state: Value, value: Value) -> None:
        """What `state` is after this run."""
        self.output(f"{state.name}.next", value)

    def unchanged(self, state: Value, value: Value) -> None:
        """An operator's view of `state` after its update, which it insists on putting out: bound to the same memory."""
        self.output(f"{state.name}.same", value)

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike | None = None) -> Value:
        """A small constant, shared by equal uses."""
        array = np.asarray(value, dtype=dtype)
        key = (array.dtype.str, array.tobytes(), array.shape)
        if key not in self._constants:
            self._constants[key] = self._builder.initializer(ir.tensor(array), f"constant.{len(self._constants)}")
        return self._constants[key]

    def choose(self, condition: Value, then: Callable[[Value], Value], otherwise: Value) -> Value:
        """What `then` builds, in a subgraph run only if the scalar `condition` is true, else `otherwise`: [B] int64."""

        def output(name: str) -> Value:
            return ir.Value(name=name, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([ROWS]))

        outer = self.op
        branches = []
        for name, trace in (("then", then), ("else", lambda op: op.Identity(otherwise))):

            def inner(op: Value, trace: Callable[[Value], Value] = trace) -> Value:
                self.op = op
                return trace(op)

            prefix = f"choice{self._choices}.{name}"
            branch = self._builder.subgraph(inner, [], [output("chosen")], name=prefix)
            # Names are unique in the whole model, the builder's only in their own graph.
            for node in branch:
                node.name = f"{prefix}.{node.name}"
                for value in node.outputs:
                    value.name = f"{prefix}.{value.name}"
            branches.append(branch)
            self.op = outer
        self._choices += 1
        return outer.If(condition, then_branch=branches[0], else_branch=branches[1])

    def call(self, function: ir.Function, *operands: Value, **attributes: float) -> Value:
        """What `function` makes of `operands`: by a kernel where the session has one for it, else node by node."""
        self._graph.opset_imports[function.domain] = 1
        self._functions[function.name] = function
        return getattr(self._builder.opset(function.domain, 1), function.name)(*operands, **attributes)

    def weight(
        self,
        name: str,
        shape: Sequence[int],
        load: Callable[[], npt.NDArray[Any]],
        dtype: npt.DTypeLike = np.float32,
    ) -> Value:
        """A weight of `shape`, read by `load` only while the graph is saved; one value per name."""
        return self.weights(name, {name: (shape, dtype)}, lambda: Stored([load()]))[0]

    def weights(
        self,
        tensor: str,
        declared: Mapping[str, tuple[Sequence[int], npt.DTypeLike]],
        make: Callable[[], Stored],
    ) -> tuple[Value, ...]:
        """Weights that together hold one `tensor`: shapes and dtypes by name, and all arrays from one call of `make`.

        `make` is called only while the graph is saved. There is one group of values per tensor.
        """
        if tensor not in self._groups:
            values = []
            for name, (shape, dtype) in declared.items():
                # Where it lies is known when it is written.
                there = ir.ExternalTensor(
                    "", 0, 0, ir.DataType.from_numpy(np.dtype(dtype)), shape=ir.Shape(shape), name=name
                )
                values.append(self._builder.initializer(there, name))
            self._groups[tensor] = _Group(tuple(values), make)
        return self._groups[tensor].values

    @property
    def weight_bytes(self) -> int:
        """Bytes that `save` will write as weights."""
        return sum(int(value.const_value.nbytes) for group in self._groups.values() for value in group.values)

    @property
    def loaded_bytes(self) -> int:
        """Bytes of the weights in a session on a CPU, which makes 16-bit matrices float32 once and for all."""
        weights = [value for group in self._groups.values() for value in group.values]
        widened = (value for value in weights if any(use.node.op_type == "Cast" for use in value.uses()))
        return self.weight_bytes + sum(int(value.const_value.nbytes) for value in widened)

    @property
    def slot_bytes(self) -> int:
        """Bytes of a row of all states."""
        inputs: Sequence[Value] = self._graph.inputs
        states = (value for value in inputs if value.name.startswith(_STATES))
        return sum(prod(value.shape[1:]) * int(value.dtype.itemsize) for value in states)

    def save(self, path: Path, progress: Callable[[str, int], None] | None = None) -> dict[str, TensorError]:
        """Write `path` and, beside it, its weights `path`.data, one tensor at a time. Return the errors of the rounded
        tensors by name.

        `progress` is called with each weight's name and size in bytes as it is written.
        """
        data = path.name + ".data"
        errors: dict[str, TensorError] = {}
        with path.with_name(data).open("wb") as file:
            for tensor, group in self._groups.items():
                stored_tensor = group.make()
                if stored_tensor.error is not None:
                    errors[tensor] = stored_tensor.error
                for value, array in zip(group.values, stored_tensor.arrays, strict=True):
                    declared = value.const_value
                    if array.shape != tuple(declared.shape.numpy()):
                        raise ValueError(f"weight {value.name}: made {array.shape}, declared {declared.shape}")
                    stored = np.ascontiguousarray(array, dtype=declared.dtype.numpy())
                    file.seek(-file.tell() % _ALIGNMENT, os.SEEK_CUR)
                    value.const_value = ir.ExternalTensor(
                        data, file.tell(), stored.nbytes, declared.dtype, shape=declared.shape, name=value.name
                    )
                    file.write(stored.reshape(-1).view(np.uint8).data)
                    if progress is not None:
                        progress(str(value.name), stored.nbytes)
        functions = list(self._functions.values())
        ir.save(ir.Model(self._graph, ir_version=11, producer_name="personaplex-triton", functions=functions), path)
        return errors


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor as a graph stores it, in one array or several. `error`: of the rounding; None if it is exact."""

    arrays: Sequence[npt.NDArray[Any]]
    error: TensorError | None = None


@dataclass(frozen=True)
class _Group:
    """Weights that together hold one tensor."""

    values: tuple[Value, ...]
    make: Callable[[], Stored]
