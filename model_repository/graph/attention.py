"""Attention over a ring of keys and values that is updated in place, one ring per row.

A ring of `window` = context - 1 slots *is* the reference's window: it masks the oldest of its `context` slots. The new
keys (already rotated) are written into slot p mod window by `TensorScatter(circular)`, then attention reads the ring.
A row that takes no part keeps its position: what it writes lies in slots that its next step overwrites first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from model_repository.checkpoint.geometry import TransformerGeometry
from model_repository.graph.builder import Graph, Value
from model_repository.graph.layers import merge_heads, split_heads
from model_repository.variants import CachePrecision, Precision


@dataclass(frozen=True)
class CacheScales:
    """In which precision keys and values are kept; `key` and `value` are what an int8 step stands for."""

    precision: CachePrecision = CachePrecision.FP32
    key: float = 1.0
    value: float = 1.0


_DTYPES = {
    CachePrecision.FP32: ir.DataType.FLOAT,
    CachePrecision.FP16: ir.DataType.FLOAT16,
    CachePrecision.BF16: ir.DataType.BFLOAT16,
    CachePrecision.INT8: ir.DataType.INT8,
}


class Ring:
    """The key and value caches of one layer: [rows, heads, window, head_dim] each.

    `activations`: precision of the keys and values that are written. `zeroed`: START zeroes the ring. Required for an
    attention that multiplies entries that were not written by 0: 0 * NaN is NaN.
    """

    def __init__(
        self,
        graph: Graph,
        name: str,
        geometry: TransformerGeometry,
        scales: CacheScales | None = None,
        activations: Precision = Precision.FP32,
        zeroed: bool = False,
    ) -> None:
        self._graph = graph
        self._activations = activations
        self.scales = scales or CacheScales()
        shape = (geometry.num_heads, geometry.window, geometry.head_dim)
        dtype = _DTYPES[self.scales.precision]
        declare = graph.state if zeroed else graph.cache
        self.key = declare(f"{name}.key", shape, dtype)
        self.value = declare(f"{name}.value", shape, dtype)

    def write(self, key: Value, value: Value, position: Value) -> tuple[Value, Value]:
        """Put key and value [B, heads, S, head_dim] at slots position[b].. (mod window); the updated caches."""
        updated = []
        for cache, new, scale in ((self.key, key, self.scales.key), (self.value, value, self.scales.value)):
            stored = self._stored(new, scale)
            written = self._graph.op.TensorScatter(cache, stored, position, axis=2, mode="circular")
            self._graph.update(cache, written)
            updated.append(written)
        return updated[0], updated[1]

    def _stored(self, new: Value, scale: float) -> Value:
        graph, op = self._graph, self._graph.op
        if self.scales.precision is CachePrecision.INT8:
            return op.QuantizeLinear(new, graph.constant(np.float32(scale)), graph.constant(np.int8(0)))
        same = self.scales.precision.value == self._activations.value
        return new if same else op.Cast(new, to=_DTYPES[self.scales.precision])


class FilledAttention:
    """Grouped-query attention in shared-KV mode: reads only what is filled, at any position of each row.

    With S > 1 columns the batch must be one row and its chunk must not wrap: position + S <= window.
    """

    def __init__(self, graph: Graph, position: Value, steps: Value, geometry: TransformerGeometry) -> None:
        op = graph.op
        self._graph = graph
        self._geometry = geometry
        window = graph.constant(np.int64(geometry.window))
        filled = op.Min(op.Add(position, steps), window)
        self._last = op.Cast(op.Sub(filled, graph.constant(np.int64(1))), to=ir.DataType.INT32)
        self._capacity = graph.constant(np.int32(geometry.window))
        rows = op.Shape(position)
        shape = op.Concat(rows, graph.constant([0, geometry.dim]), axis=0)
        self._nothing_new = op.ConstantOfShape(shape)

    def __call__(self, query: Value, ring: Ring, key: Value, value: Value) -> Value:
        """query [B, S, dim]; key and value: `ring`'s caches after its `write` -> [B, S, dim]."""
        heads = self._geometry.num_heads
        inputs = (query, self._nothing_new, self._nothing_new, key, value, self._last, self._capacity)
        attend = partial(self._graph.contrib.GroupQueryAttention, *inputs, num_heads=heads, kv_num_heads=heads)
        if ring.scales.precision is not CachePrecision.INT8:
            return attend()
        scales = (self._graph.constant(np.array([scale], np.float32)) for scale in (ring.scales.key, ring.scales.value))
        unused = (None,) * 5
        attended, keys, values = attend(
            *unused, *scales, k_quant_type="PER_TENSOR", v_quant_type="PER_TENSOR", kv_cache_bit_width=8, _outputs=3
        )
        # For quantized caches the operator insists on its `present` outputs.
        self._graph.unchanged(ring.key, keys)
        self._graph.unchanged(ring.value, values)
        return attended


class StepAttention:
    """One column of every row over what its ring holds, in the precision of the ring: what CUDA has fast kernels for.

    ONNX Attention with the number of filled slots per row and neither mask nor causality is FlashAttention straight
    on the cache; a mask, or causality with fewer queries than slots, would leave that path. So a step has one column.
    """

    def __init__(self, graph: Graph, position: Value, geometry: TransformerGeometry) -> None:
        op = graph.op
        self._graph = graph
        self._geometry = geometry
        self._filled = op.Min(op.Add(position, graph.constant(np.int64(1))), graph.constant(np.int64(geometry.window)))

    def __call__(self, query: Value, ring: Ring, key: Value, value: Value) -> Value:
        """query [B, 1, dim]; key and value: `ring`'s caches after its `write` -> [B, 1, dim]."""
        graph, op, geometry = self._graph, self._graph.op, self._geometry
        heads = op.Reshape(query, graph.constant([0, geometry.num_heads, 1, geometry.head_dim]))
        attended = op.Attention(heads, key, value, None, None, None, self._filled)
        return op.Reshape(attended, graph.constant([0, 1, geometry.dim]))


class MaskedAttention:
    """Plain attention over the whole ring with a mask, for small rings and several positions per step and row.

    Entries that are masked are still multiplied by their weight, 0: the ring must be `zeroed`.
    """

    def __init__(self, graph: Graph, position: Value, steps: int, geometry: TransformerGeometry) -> None:
        op = graph.op
        self._graph = graph
        self._geometry = geometry
        slots = graph.constant(np.arange(geometry.window, dtype=np.int64))
        newest = op.Add(op.Unsqueeze(position, graph.constant([1])), graph.constant([[steps - 1]], np.int64))
        age = op.Mod(op.Sub(newest, slots), graph.constant(np.int64(geometry.window)))
        held = op.Unsqueeze(op.Sub(newest, age), graph.constant([1]))
        queries = op.Add(
            op.Unsqueeze(position, graph.constant([1, 2])),
            graph.constant(np.arange(steps, dtype=np.int64)[None, :, None]),
        )
        visible = op.And(op.GreaterOrEqual(held, graph.constant(np.int64(0))), op.LessOrEqual(held, queries))
        bias = op.Where(visible, graph.constant(np.float32(0)), graph.constant(np.float32(-1e30)))
        self._bias = op.Unsqueeze(bias, graph.constant([1]))
        self._scale = graph.constant(np.float32(geometry.head_dim**-0.5))

    def __call__(self, query: Value, key: Value, value: Value) -> Value:
        """query [B, S, dim], key and value: updated caches [B, heads, window, head_dim] -> [B, S, dim]."""
        op, geometry = self._graph.op, self._geometry
        heads = split_heads(self._graph, query, geometry.num_heads, geometry.head_dim)
        scores = op.MatMul(op.Mul(heads, self._scale), op.Transpose(key, perm=[0, 1, 3, 2]))
        attention = op.Softmax(op.Add(scores, self._bias), axis=-1)
        return merge_heads(self._graph, op.MatMul(attention, value), geometry.dim)
