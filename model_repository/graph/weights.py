"""A graph's access to a checkpoint: matrices and embedding tables, in every precision they can be kept in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from model_repository.checkpoint.weights.tensors import TensorSource
from model_repository.graph.builder import Graph, Stored, Value
from model_repository.quantize.blocks import (
    BLOCK,
    CPU_LAYOUT,
    Layout,
    error_of,
    error_sums,
    quantize,
    rounded_error,
)
from model_repository.quantize.config import QuantizationConfig, smoothing_of
from model_repository.variants import Precision

_DTYPES: dict[Precision, npt.DTypeLike] = {
    Precision.FP32: np.float32,
    Precision.FP16: np.float16,
    Precision.BF16: ml_dtypes.bfloat16,
}

OWN_DOMAIN = "personaplex"
"""Of operators that the serving side may have kernels for."""

GPU_BLOCK, GPU_TILE = 32, 64
"""Elements per scale of matrices for CUDA, where a row is a multiple of the tile. In blocks of 32 without zero points
ONNX Runtime multiplies any number of rows with CUTLASS kernels (`FUSED_MATMULS` in `serving/device.py`), which fail for
rows that are not whole tiles; other blocks it unpacks to 16 bits from 8 rows on."""

ACCURACY_INT8 = 4
"""MatMulNBits' level at which activations are rounded to 8 bits, by blocks of each row: rows stay independent."""


class Weights:
    """Every tensor of a checkpoint enters the graph through one of these methods.

    `quantization` says in which precision matrices and embedding tables are kept, `activations` that of what goes into
    matmuls and comes out of them; everything else is float32.
    """

    def __init__(
        self,
        graph: Graph,
        source: TensorSource,
        quantization: QuantizationConfig | None = None,
        activations: Precision = Precision.FP32,
    ) -> None:
        self.graph = graph
        self.source = source
        self.activations = activations
        self._quantization = quantization or QuantizationConfig()

    def tensor(self, key: str) -> Value:
        """The tensor as it is in the checkpoint."""
        return self.graph.weight(key, self.source.shape(key), lambda: self.source.read(key))

    def vector(self, key: str) -> Value:
        """The tensor flattened: [n] (norm scales are stored as [1, 1, n])."""
        size = int(np.prod(self.source.shape(key)))
        return self.graph.weight(f"{key}.flat", (size,), lambda: self.source.read(key).reshape(-1))

    def linear(self, x: Value, key: str, rows: slice | None = None) -> Value:
        """x [..., in] times the transpose of checkpoint matrix `key` [out, in], or of the rows given -> [..., out].

        x has, and what comes out gets, the precision of activations.
        """
        total, columns = self.source.shape(key)
        start, stop, _ = (rows or slice(None)).indices(total)
        name = key if rows is None else f"{key}[{start}:{stop}]"
        precision = self._quantization.precision(key)
        if precision in (Precision.INT8, Precision.INT4):
            return self._block_quantized(
                x, key, rows, name, (stop - start, columns), 8 if precision is Precision.INT8 else 4
            )
        if Precision.FP32 not in (precision, self.activations):
            precision = self.activations
        dtype = _DTYPES[precision]

        def make() -> Stored:
            weight = self.source.read(key, rows)
            if precision is Precision.FP32:
                return Stored([weight.T])
            largest = float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]
            rounded = weight.clip(-largest, largest).astype(dtype)
            return Stored([rounded.T], rounded_error(weight, rounded, 16))

        (stored,) = self.graph.weights(name, {f"{name}.T": ((columns, stop - start), dtype)}, make)
        if self.activations is Precision.FP32 and precision is not Precision.FP32:
            stored = self.graph.op.Cast(stored, to=ir.DataType.FLOAT)
        return self.graph.op.MatMul(x, stored)

    def _block_quantized(
        self, x: Value, key: str, rows: slice | None, name: str, shape: tuple[int, int], bits: int
    ) -> Value:
        count, columns = shape
        on_cpu = self.activations is Precision.FP32
        layout = CPU_LAYOUT
        if not on_cpu:
            size = BLOCK if columns % GPU_TILE else GPU_BLOCK
            layout = Layout(size, _DTYPES[self.activations], zero_points=False)
        blocks = -(-columns // layout.size)
        declared: dict[str, tuple[tuple[int, ...], Any]] = {
            f"{name}.codes": ((count, blocks, layout.size * bits // 8), np.uint8),
            f"{name}.scales": ((count, blocks), np.float32 if on_cpu else layout.scale_type),
        }
        if bits == 4 and layout.zero_points:
            declared[f"{name}.zeros"] = ((count, -(-blocks // 2)), np.uint8)

        def make() -> Stored:
            importance = self._quantization.importance.get(key)
            blocks, error = quantize(self.source.read(key, rows), bits, importance, layout)
            return Stored([blocks.codes, blocks.scales, *([] if blocks.zeros is None else [blocks.zeros])], error)

        operands = self.graph.weights(name, declared, make)
        sizes = {"K": columns, "N": count, "bits": bits, "block_size": layout.size}
        if on_cpu:
            return self.graph.call(_block_product(), x, *operands, **sizes)
        return self.graph.contrib.MatMulNBits(x, *operands, **sizes)

    def embedding(self, keys: Sequence[str], indices: Value) -> Value:
        """Rows of the tables `keys`, laid below one another: indices [...] int64 -> [..., width] float32."""
        name = keys[0] if len(keys) == 1 else f"{keys[0]}.stacked"
        shape = rows, width = sum(self.source.shape(key)[0] for key in keys), self.source.shape(keys[0])[1]
        precision = self._quantization.tables
        if precision is Precision.INT8:
            declared: dict[str, tuple[tuple[int, ...], Any]] = {
                f"{name}.codes": (shape, np.uint8),
                f"{name}.scales": ((rows, -(-width // BLOCK)), np.float32),
            }

            def make() -> Stored:
                blocks, error = quantize(self._stacked(keys, shape, np.float32).arrays[0], 8)
                return Stored([blocks.codes.reshape(rows, -1)[:, :width], blocks.scales], error)

            operands = self.graph.weights(name, declared, make)
            # Codes of 8 bits stand for their difference from 128.
            sizes = {"bits": 8, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
            return self.graph.contrib.GatherBlockQuantized(operands[0], indices, operands[1], **sizes)
        dtype = _DTYPES[precision]
        (stored,) = self.graph.weights(name, {name: (shape, dtype)}, lambda: self._stacked(keys, shape, dtype))
        taken = self.graph.op.Gather(stored, indices)
        return taken if precision is Precision.FP32 else self.graph.op.Cast(taken, to=ir.DataType.FLOAT)

    def _stacked(self, keys: Sequence[str], shape: tuple[int, int], dtype: npt.DTypeLike) -> Stored:
        """The tables below one another; one is read at a time."""
        stacked, start, sums = np.empty(shape, dtype), 0, []
        for key in keys:
            part = self.source.read(key)
            there = stacked[start : start + len(part)]
            there[:] = part
            sums.append(error_sums(part, there))
            start += len(part)
        exact = stacked.dtype == np.float32
        return Stored([stacked], None if exact else error_of(8 * stacked.itemsize, np.stack(sums), stacked.size))

    def smoothed(self, x: Value, key: str) -> Value:
        """x [..., in] as the matrix `key` takes it: where the source has rescaled its columns, divided by the same."""
        smoothing = smoothing_of(key)
        return self.graph.op.Mul(x, self.tensor(smoothing)) if smoothing in self.source else x

    @property
    def compute_dtype(self) -> ir.DataType:
        """ONNX's type of activations."""
        return ir.DataType.from_numpy(np.dtype(_DTYPES[self.activations]))

    def to_compute_dtype(self, x: Value) -> Value:
        """float32 `x` in the precision of activations."""
        return x if self.activations is Precision.FP32 else self.graph.op.Cast(x, to=self.compute_dtype)

    def to_float32(self, x: Value) -> Value:
        """What matmuls gave, as float32."""
        return x if self.activations is Precision.FP32 else self.graph.op.Cast(x, to=ir.DataType.FLOAT)


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
