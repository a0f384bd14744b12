"""Attention over a ring of keys and values that is updated in place, one ring per row.

A ring of `window` = context - 1 slots *is* the reference's window: it masks the oldest of its `context` slots. The new
keys (already rotated) are written into slot p mod window by `TensorScatter(circular)`, then attention reads the ring.
A row that takes no part keeps its position: what it writes lies in slots that its next step overwrites first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import onnx_ir as ir
from onnxscript import GraphBuilder

from model_repository.checkpoint.geometry import TransformerGeometry
from model_repository.graph.builder import OPSET, Graph, Value
from model_repository.graph.layers import rotate, split_heads
from model_repository.graph.weights import OWN_DOMAIN, Weights
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
    """The key and value caches of one layer: [rows, *shape] each, with the ring's slots on the axis before the last.

    `activations`: precision of the keys and values that are written. `zeroed`: START zeroes the ring. Required for an
    attention that multiplies entries that were not written by 0: 0 * NaN is NaN.
    """

    def __init__(
        self,
        graph: Graph,
        name: str,
        shape: tuple[int, ...],
        scales: CacheScales | None = None,
        activations: Precision = Precision.FP32,
        zeroed: bool = False,
    ) -> None:
        self._graph = graph
        self._activations = activations
        self.scales = scales or CacheScales()
        dtype = _DTYPES[self.scales.precision]
        self.key = graph.state(f"{name}.key", shape, dtype, zeroed)
        self.value = graph.state(f"{name}.value", shape, dtype, zeroed)

    def write(self, key: Value, value: Value, position: Value) -> tuple[Value, Value]:
        """Write S keys and values of each row to slots position[b].. (mod window). Return the updated caches."""
        updated = []
        for cache, new, scale in ((self.key, key, self.scales.key), (self.value, value, self.scales.value)):
            stored = self._stored(new, scale)
            written = self._graph.op.TensorScatter(cache, stored, position, axis=-2, mode="circular")
            self._graph.update(cache, written)
            updated.append(written)
        return updated[0], updated[1]

    def _stored(self, new: Value, scale: float) -> Value:
        graph, op = self._graph, self._graph.op
        if self.scales.precision is CachePrecision.INT8:
            return op.QuantizeLinear(new, graph.constant(np.float32(scale)), graph.constant(np.int8(0)))
        same = self.scales.precision.value == self._activations.value
        return new if same else op.Cast(new, to=_DTYPES[self.scales.precision])


class Attention(Protocol):
    """Causal attention of one kind for all layers of a graph.

    With S > 1 columns the batch must be one row and the columns must not wrap: position + S <= window.
    """

    cache_shape: tuple[int, ...]
    """Of a row of a layer's keys, and of its values."""

    def __call__(self, projected: Value, ring: Ring) -> Value:
        """Attend with queries to the ring after keys and values were written to it: [B, S, 3 * dim] -> [B, S, dim]."""


@dataclass(frozen=True, eq=False)
class Columns:
    """The columns of a run, for B rows and S columns.

    position [B] int64: of the first column. filled [B] int64: slots of each row that are read, new ones included.
    angles: cosines and sines [B, S, head_dim / 2] float32 of the rotary embedding.
    """

    position: Value
    filled: Value
    angles: tuple[Value, Value]


class FilledAttention:
    """Grouped-query attention in shared-KV mode in float32, which on a CPU reads only the slots that are filled.

    Caches are [rows, heads, window, head_dim].
    """

    def __init__(self, graph: Graph, columns: Columns, geometry: TransformerGeometry) -> None:
        op = graph.op
        self._graph = graph
        self._geometry = geometry
        self._columns = columns
        self.cache_shape: tuple[int, ...] = (geometry.num_heads, geometry.window, geometry.head_dim)
        self._last = op.Cast(op.Sub(columns.filled, graph.constant(np.int64(1))), to=ir.DataType.INT32)
        self._capacity = graph.constant(np.int32(geometry.window))
        rows = op.Shape(columns.position)
        shape = op.Concat(rows, graph.constant([0, geometry.dim]), axis=0)
        self._nothing_new = op.ConstantOfShape(shape)

    def __call__(self, projected: Value, ring: Ring) -> Value:
        """See `Attention`."""
        heads, head_dim = self._geometry.num_heads, self._geometry.head_dim
        query, key, value = _rotated(self._graph, projected, self._columns.angles, self._geometry)
        key, value = (split_heads(self._graph, new, heads, head_dim) for new in (key, value))
        keys, values = ring.write(key, value, self._columns.position)
        inputs = (query, self._nothing_new, self._nothing_new, keys, values, self._last, self._capacity)
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


class CausalAttention:
    """Attention in the precision of the ring: FlashAttention on CUDA, straight on the cache.

    ONNX Attention without a mask stays with FlashAttention; causality is aligned to the last filled slot. Caches are
    [rows, window, dim]: heads need no transposition.
    """

    def __init__(self, weights: Weights, columns: Columns, geometry: TransformerGeometry) -> None:
        self._graph = weights.graph
        self._columns = columns
        self._geometry = geometry
        cosines, sines = columns.angles
        self._angles = weights.to_compute_dtype(cosines), weights.to_compute_dtype(sines)
        self.cache_shape: tuple[int, ...] = (geometry.window, geometry.dim)

    def __call__(self, projected: Value, ring: Ring) -> Value:
        """See `Attention`."""
        query, key, value = _rotated(self._graph, projected, self._angles, self._geometry)
        keys, values = ring.write(key, value, self._columns.position)
        inputs = (query, keys, values, None, None, None, self._columns.filled)
        heads = self._geometry.num_heads
        return self._graph.op.Attention(*inputs, is_causal=1, q_num_heads=heads, kv_num_heads=heads)


class Int8KvAttention:
    """Attention to int8 keys and values by a CUDA operator of our own (`serving/native/int8_kv_attention.cu`).

    Without its library a session does what the operator's function says: it makes the whole ring float32. Rotation and
    scores are float32 in both. Caches are [rows, window, dim].
    """

    def __init__(self, weights: Weights, columns: Columns, geometry: TransformerGeometry) -> None:
        self._graph = weights.graph
        self._columns = columns
        self._heads = geometry.num_heads
        self._operator = _int8_kv_attention(weights.compute_dtype)
        self.cache_shape: tuple[int, ...] = (geometry.window, geometry.dim)

    def __call__(self, projected: Value, ring: Ring) -> Value:
        """See `Attention`."""
        columns, scales = self._columns, ring.scales
        operands = (projected, *columns.angles, columns.position, columns.filled, ring.key, ring.value)
        attributes = {"num_heads": self._heads, "key_scale": scales.key, "value_scale": scales.value}
        attended, keys, values = self._graph.call(self._operator, *operands, **attributes, _outputs=3)
        self._graph.update(ring.key, keys)
        self._graph.update(ring.value, values)
        return attended


def _rotated(
    graph: Graph, projected: Value, angles: tuple[Value, Value], geometry: TransformerGeometry
) -> tuple[Value, Value, Value]:
    """Queries, keys and values [B, S, dim] of `projected` [B, S, 3 * dim]; queries and keys are rotated."""
    op, dim = graph.op, geometry.dim
    both, value = op.Split(projected, graph.constant([2 * dim, dim]), axis=-1, _outputs=2)
    query, key = op.Split(rotate(graph, both, angles, 2 * geometry.num_heads), axis=-1, num_outputs=2, _outputs=2)
    return query, key, value


def _int8_kv_attention(activations: ir.DataType) -> ir.Function:
    """The operator as a function: quantize, write into the rings, and attend to them as float32."""
    names = ("projected", "cosines", "sines", "position", "filled", "keys", "values")
    projected, cosines, sines, position, filled, *caches = operands = [ir.Value(name=name) for name in names]
    body = ir.Graph(operands, [], nodes=[], opset_imports={"": OPSET})
    op = GraphBuilder(body).op

    integer, real = ir.AttributeType.INT, ir.AttributeType.FLOAT
    heads = {name: ir.RefAttr(name, "num_heads", integer) for name in ("num_heads", "q_num_heads", "kv_num_heads")}
    rotation = {"interleaved": 1, "num_heads": heads.pop("num_heads")}
    query, key, value = op.Split(op.Cast(projected, to=ir.DataType.FLOAT), axis=-1, num_outputs=3, _outputs=3)
    query, key = (op.RotaryEmbedding(x, cosines, sines, **rotation) for x in (query, key))
    written, unpacked = [], []
    for cache, new, scale in zip(caches, (key, value), ("key_scale", "value_scale"), strict=True):
        step = op.Constant(value_float=ir.RefAttr("value_float", scale, real))
        codes = op.QuantizeLinear(new, step, output_dtype=ir.DataType.INT8)
        written.append(op.TensorScatter(cache, codes, position, axis=-2, mode="circular"))
        unpacked.append(op.DequantizeLinear(written[-1], step))
    attended = op.Attention(query, *unpacked, None, None, None, filled, is_causal=1, **heads)
    body.outputs.extend([op.Cast(attended, to=activations), *written])
    kinds = {"num_heads": integer, "key_scale": real, "value_scale": real}
    declared = [ir.Attr(name, kind, None) for name, kind in kinds.items()]
    return ir.Function(OWN_DOMAIN, "Int8KvAttention", graph=body, attributes=declared)


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
        merged = op.Transpose(op.MatMul(attention, value), perm=[0, 2, 1, 3])
        return op.Reshape(merged, self._graph.constant([0, 0, geometry.dim]))
