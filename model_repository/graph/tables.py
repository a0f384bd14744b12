"""Rows of embedding tables, in every precision a table can be kept in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from model_repository.graph.builder import Float32, Graph, Stored, Value
from model_repository.quantize.blocks import BLOCK, Float64, error_of, error_sums, quantize
from model_repository.quantize.config import QuantizationConfig
from model_repository.variants import Precision


@dataclass(frozen=True, eq=False)
class Table:
    """Tables of a checkpoint laid below one another: `parts` [n, width] in order, each as its rows and what reads it.

    name: that all of it has in the graph.
    """

    name: str
    width: int
    parts: list[tuple[int, Callable[[], Float32]]]

    @property
    def rows(self) -> int:
        """Of all parts."""
        return sum(rows for rows, _ in self.parts)

    def fill(self, stacked: NDArray[Any], sums: list[Float64] | None = None) -> NDArray[Any]:
        """`stacked` [rows, width], one part read at a time; to `sums` goes what its type did to each (`error_sums`)."""
        start = 0
        for rows, read in self.parts:
            part, there = read(), stacked[start : start + rows]
            there[:] = part
            if sums is not None:
                sums.append(error_sums(part, there))
            start += rows
        return stacked


def lookup(graph: Graph, quantization: QuantizationConfig, table: Table, indices: Value) -> Value:
    """indices [...] int64 -> those rows of `table`, kept as `quantization` says: [..., width] float32."""
    if quantization.tables is Precision.INT8:
        return _blocks(graph, table, indices)
    dtype = np.dtype(np.float32 if quantization.tables is Precision.FP32 else ml_dtypes.bfloat16)
    shape = (table.rows, table.width)

    def make() -> Stored:
        if dtype == np.float32:
            return Stored([table.fill(np.empty(shape, dtype))])
        sums: list[Float64] = []
        stacked = table.fill(np.empty(shape, dtype), sums)
        return Stored([stacked], error_of(8 * dtype.itemsize, np.stack(sums), stacked.size))

    (stored,) = graph.weights(table.name, {table.name: (shape, dtype)}, make)
    taken = graph.op.Gather(stored, indices)
    return taken if dtype == np.float32 else graph.op.Cast(taken, to=ir.DataType.FLOAT)


def _blocks(graph: Graph, table: Table, indices: Value) -> Value:
    name, rows, width = table.name, table.rows, table.width
    blocks = -(-width // BLOCK)
    declared: dict[str, tuple[tuple[int, ...], Any]] = {
        f"{name}.codes": ((rows, width), np.uint8),
        f"{name}.scales": ((rows, blocks), np.float32),
    }

    def make() -> Stored:
        blocks, error = quantize(table.fill(np.empty((rows, width), np.float32)), 8)
        return Stored([blocks.codes.reshape(rows, -1)[:, :width], blocks.scales], error)

    codes, scales = graph.weights(name, declared, make)
    # Codes of 8 bits stand for their difference from 128.
    return graph.contrib.GatherBlockQuantized(
        codes, indices, scales, bits=8, block_size=BLOCK, gather_axis=0, quantize_axis=1
    )
