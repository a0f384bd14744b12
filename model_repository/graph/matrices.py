"""Matrix products in every precision a matrix can be kept in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from model_repository.graph.builder import Float32, Graph, Value
from model_repository.quantize.blocks import BLOCK, quantize, rounded_error
from model_repository.quantize.plan import Plan
from model_repository.variants import Precision

ACCURACY_INT8 = 4
"""MatMulNBits' level at which activations are rounded to 8 bits, by blocks of each row: rows stay independent."""


def product(
    graph: Graph, plan: Plan, x: Value, key: str, name: str, shape: tuple[int, int], read: Callable[[], Float32]
) -> Value:
    """x [..., in] times the transpose of what `read` gives, [out, in] = `shape`, kept as `plan` says of matrix `key`.

    `name` is that of these rows of the matrix.
    """
    precision = plan.precision(key)
    if precision is Precision.FP32:
        rows, columns = shape
        return graph.op.MatMul(x, graph.weight(f"{name}.T", (columns, rows), lambda: read().T))
    if precision is Precision.FP16:
        return _half(graph, plan, x, name, shape, read)
    return _blocks(graph, plan, x, key, name, shape, read, 8 if precision is Precision.INT8 else 4)


def _half(graph: Graph, plan: Plan, x: Value, name: str, shape: tuple[int, int], read: Callable[[], Float32]) -> Value:
    rows, columns = shape

    def make() -> NDArray[Any]:
        weight = read()
        stored = weight.clip(-65504, 65504).astype(np.float16)
        plan.errors[name] = rounded_error(weight, stored, 16)
        return stored.T

    stored = graph.weight(f"{name}.T", (columns, rows), make, np.float16)
    return graph.op.MatMul(x, graph.op.Cast(stored, to=ir.DataType.FLOAT))


def _blocks(
    graph: Graph,
    plan: Plan,
    x: Value,
    key: str,
    name: str,
    shape: tuple[int, int],
    read: Callable[[], Float32],
    bits: int,
) -> Value:
    rows, columns = shape
    blocks = -(-columns // BLOCK)
    declared: dict[str, tuple[tuple[int, ...], Any]] = {
        f"{name}.codes": ((rows, blocks, BLOCK * bits // 8), np.uint8),
        f"{name}.scales": ((rows, blocks), np.float32),
    }
    if bits == 4:
        declared[f"{name}.zeros"] = ((rows, -(-blocks // 2)), np.uint8)

    def make() -> list[NDArray[Any]]:
        made, plan.errors[name] = quantize(read(), bits, plan.importance(key))
        return [made.codes, made.scales, *([] if made.zeros is None else [made.zeros])]

    operands = graph.weights(declared, make)
    return graph.contrib.MatMulNBits(
        x, *operands, K=columns, N=rows, bits=bits, block_size=BLOCK, accuracy_level=ACCURACY_INT8
    )
