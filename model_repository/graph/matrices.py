"""Matrix products in every precision a matrix can be kept in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from model_repository.graph.builder import Float32, Graph, Stored, Value
from model_repository.quantize.blocks import BLOCK, CPU_LAYOUT, Layout, quantize, rounded_error
from model_repository.quantize.config import QuantizationConfig
from model_repository.variants import Precision

_HALVES: Mapping[Precision, tuple[npt.DTypeLike, ir.DataType]] = {
    Precision.FP16: (np.float16, ir.DataType.FLOAT16),
    Precision.BF16: (ml_dtypes.bfloat16, ir.DataType.BFLOAT16),
}

_LARGEST_FP16 = 65504.0

OWN_DOMAIN = "personaplex"
"""Of operators that the serving side may have kernels for."""

GPU_BLOCK, GPU_TILE = 32, 64
"""Elements per scale of matrices for CUDA, where a row is a multiple of the tile. In blocks of 32 without zero points
ONNX Runtime multiplies any number of rows with CUTLASS kernels (`FUSED_MATMULS` in `serving/device.py`), which fail for
rows that are not whole tiles; other blocks it unpacks to 16 bits from 8 rows on."""

ACCURACY_INT8 = 4
"""MatMulNBits' level at which activations are rounded to 8 bits, by blocks of each row: rows stay independent."""


@dataclass(frozen=True, eq=False)
class Matrix:
    """Rows of a checkpoint's matrix, [out, in] = `shape`, which `read` gives.

    key: of the whole matrix, which a quantization speaks of. name: that these rows have in the graph.
    """

    key: str
    name: str
    shape: tuple[int, int]
    read: Callable[[], Float32]


def linear(
    graph: Graph, quantization: QuantizationConfig, x: Value, matrix: Matrix, activations: Precision = Precision.FP32
) -> Value:
    """x [..., in] times the transpose of `matrix`, kept as `quantization` says -> [..., out].

    x has, and what comes out gets, the precision `activations`.
    """
    precision = quantization.precision(matrix.key)
    if precision is Precision.FP32:
        return graph.op.MatMul(x, _transposed(graph, matrix, np.float32, lambda: Stored([matrix.read().T])))
    if precision in _HALVES:
        return _half(graph, precision if activations is Precision.FP32 else activations, x, matrix, activations)
    return _blocks(graph, quantization, x, matrix, activations)


def _transposed(graph: Graph, matrix: Matrix, dtype: npt.DTypeLike, make: Callable[[], Stored]) -> Value:
    return graph.weights(matrix.name, {f"{matrix.name}.T": (matrix.shape[::-1], dtype)}, make)[0]


def _half(graph: Graph, precision: Precision, x: Value, matrix: Matrix, activations: Precision) -> Value:
    dtype, _ = _HALVES[precision]

    def make() -> Stored:
        weight = matrix.read()
        limit = _LARGEST_FP16 if precision is Precision.FP16 else np.inf
        rounded = weight.clip(-limit, limit).astype(dtype)
        return Stored([rounded.T], rounded_error(weight, rounded, 16))

    stored = _transposed(graph, matrix, dtype, make)
    if activations is Precision.FP32:
        stored = graph.op.Cast(stored, to=ir.DataType.FLOAT)
    return graph.op.MatMul(x, stored)


def _blocks(graph: Graph, quantization: QuantizationConfig, x: Value, matrix: Matrix, activations: Precision) -> Value:
    name, (rows, columns) = matrix.name, matrix.shape
    bits = 8 if quantization.precision(matrix.key) is Precision.INT8 else 4
    on_cpu = activations is Precision.FP32
    layout = CPU_LAYOUT
    if not on_cpu:
        size = BLOCK if columns % GPU_TILE else GPU_BLOCK
        layout = Layout(size, _HALVES[activations][0], zero_points=False)
    blocks = -(-columns // layout.size)
    declared: dict[str, tuple[tuple[int, ...], Any]] = {
        f"{name}.codes": ((rows, blocks, layout.size * bits // 8), np.uint8),
        f"{name}.scales": ((rows, blocks), np.float32 if on_cpu else layout.scale_type),
    }
    if bits == 4 and layout.zero_points:
        declared[f"{name}.zeros"] = ((rows, -(-blocks // 2)), np.uint8)

    def make() -> Stored:
        blocks, error = quantize(matrix.read(), bits, quantization.importance.get(matrix.key), layout)
        return Stored([blocks.codes, blocks.scales, *([] if blocks.zeros is None else [blocks.zeros])], error)

    operands = graph.weights(name, declared, make)
    sizes = {"K": columns, "N": rows, "bits": bits, "block_size": layout.size}
    if on_cpu:
        return graph.call(_block_product(), x, *operands, **sizes)
    return graph.contrib.MatMulNBits(x, *operands, **sizes)


def _block_product() -> ir.Function:
    """An operator of our own for float32 x, for which the serving side may bring a kernel: elsewhere it is ONNX
    Runtime's MatMulNBits, whose operands and attributes it has.
    """
    operands = [ir.Value(name=name) for name in ("x", "codes", "scales", "zeros")]
    sizes = ("K", "N", "bits", "block_size")
    passed = [ir.RefAttr(name, name, ir.AttributeType.INT) for name in sizes]
    node = ir.Node(
        "com.microsoft",
        "MatMulNBits",
        operands,
        [*passed, ir.AttrInt64("accuracy_level", ACCURACY_INT8)],
        name="product",
    )
    body = ir.Graph(operands, node.outputs, nodes=[node], opset_imports={"com.microsoft": 1})
    declared = [ir.Attr(name, ir.AttributeType.INT, None) for name in sizes]
    return ir.Function(OWN_DOMAIN, "MatMulNBits", graph=body, attributes=declared)


def to_compute_dtype(graph: Graph, x: Value, activations: Precision) -> Value:
    """float32 `x` in the precision of products."""
    return graph.op.Cast(x, to=_HALVES[activations][1]) if activations in _HALVES else x


def to_float32(graph: Graph, x: Value, activations: Precision) -> Value:
    """What products gave, as float32."""
    return graph.op.Cast(x, to=ir.DataType.FLOAT) if activations in _HALVES else x
