"""Bytes a frame must read from memory, from its graphs: each weight once, and filled keys and values.

Embedding tables do not count: a frame reads 17 of their rows. Activations stay in the processor's caches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnx

STAGES: Mapping[str, str] = {
    "encode": "mimi_encoder",
    "temporal": "temporal",
    "depformer": "depformer",
    "decode": "mimi_decoder",
}
"""The models of a frame's stages, in order."""

_TABLES = {"Gather": (0,), "GatherBlockQuantized": (0, 2, 3)}
"""By operator, which of its inputs it reads single rows of."""

_HALVED = {("personaplex", "MatMulNBits"): 2}
"""By domain and operator, which of its inputs it reads the upper halves of: scales, which are bfloat16 numbers."""


@dataclass(frozen=True)
class Reads:
    """Of one model. Bytes: `weights`, whatever the number of rows; `column` for each row and filled slot of its ring
    of `window` slots; `state` for each row. `filled`: whether it reads filled slots alone, or always the whole ring.
    """

    weights: int
    column: int
    state: int
    window: int
    filled: bool

    def frame(self, rows: int, context: int) -> int:
        """Bytes that a frame of `rows` conversations reads, `context` columns each."""
        columns = min(context, self.window) if self.filled else self.window
        return self.weights + rows * (columns * self.column + self.state)


def reads_of(models: Path) -> dict[str, Reads]:
    """By stage, of the repository `models`."""
    return {stage: _reads(models / "triton" / model / "1" / "model.onnx") for stage, model in STAGES.items()}


def _reads(file: Path) -> Reads:
    graph = onnx.load(str(file), load_external_data=False).graph
    used, looked_up, halved = set[str](), set[str](), set[str]()
    for node in graph.node:
        if (index := _HALVED.get((node.domain, node.op_type))) is not None:
            halved.add(node.input[index])
        tables = _TABLES.get(node.op_type, ())
        for index, name in enumerate(node.input):
            (looked_up if index in tables else used).add(name)
    read = [tensor for tensor in graph.initializer if tensor.name in used or tensor.name not in looked_up]
    weights = sum(_bytes(tensor) // (2 if tensor.name in halved else 1) for tensor in read)
    column = state = window = 0
    for value in graph.input:
        shape = [size.dim_value for size in value.type.tensor_type.shape.dim][1:]
        size = prod(shape) * _item_bytes(value.type.tensor_type.elem_type)
        if value.name.startswith("cache."):
            window = shape[1]
            column += size // window
        elif value.name.startswith("state."):
            state += size
    return Reads(weights, column, state, window, any(node.op_type == "GroupQueryAttention" for node in graph.node))


def _bytes(tensor: onnx.TensorProto) -> int:
    if tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4):
        return int(prod(tensor.dims)) // 2
    return int(prod(tensor.dims)) * _item_bytes(tensor.data_type)


def _item_bytes(element: int) -> int:
    return int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(element)).itemsize)
