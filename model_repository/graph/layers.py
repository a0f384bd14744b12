"""Layers of the transformers: norms, rotary positions, gated and plain feed-forward."""

from __future__ import annotations

import numpy as np

from model_repository.graph.builder import Graph, Value
from model_repository.graph.weights import Weights

_VECTOR = 16
"""Elements of the widest float32 vector register. ONNX Runtime's Cos and Sin round differently in vectors and in the
remainder after the last whole one; tables padded to whole vectors make a row's angles independent of the batch."""


def summed(graph: Graph, x: Value, axis: int, count: int, *others: Value) -> Value:
    """Sum of x's `count` slices along `axis`, and then of `others`, added in this order.

    ReduceSum would choose its order by the batch size, and a row's rounding would depend on its neighbours.
    """
    op = graph.op
    parts = op.Split(x, axis=axis, num_outputs=count, _outputs=count)
    return op.Sum(*(op.Squeeze(part, graph.constant([axis])) for part in parts), *others)


def rms_norm(weights: Weights, x: Value, key: str) -> Value:
    """x * alpha / sqrt(mean(x^2) + 1e-8), over the last axis (the reference's `rms_norm_f32`)."""
    return weights.graph.op.RMSNormalization(x, weights.vector(key), axis=-1, epsilon=1e-8)


def added_rms_norm(weights: Weights, x: Value, y: Value, key: str, fused: bool) -> tuple[Value, Value]:
    """x + y, and its `rms_norm`. `fused`: in one operator of `com.microsoft`, which has a kernel on CUDA."""
    if not fused:
        total = weights.graph.op.Add(x, y)
        return total, rms_norm(weights, total, key)
    normalize = weights.graph.contrib.SkipSimplifiedLayerNormalization
    normed, mean, deviation, total = normalize(x, y, weights.vector(key), epsilon=1e-8, _outputs=4)
    # Left out: kernels do not compute them.
    mean.name = deviation.name = ""
    return total, normed


def layer_norm(weights: Weights, x: Value, key: str) -> Value:
    """LayerNorm with weight and bias, eps 1e-5 (PyTorch's default, as Mimi uses it)."""
    op = weights.graph.op
    return op.LayerNormalization(x, weights.tensor(f"{key}.weight"), weights.tensor(f"{key}.bias"), epsilon=1e-5)


def rotary_tables(
    graph: Graph, position: Value, offsets: Value, head_dim: int, max_period: float
) -> tuple[Value, Value]:
    """Cosines and sines [B, S, head_dim / 2] of the angles p * max_period^(-2i / head_dim).

    Positions p are position [B] int64 plus offsets [S] int64. Frequencies and angles are float32, as in the reference.
    """
    op = graph.op
    half = head_dim // 2
    padded = -(-half // _VECTOR) * _VECTOR
    exponents = np.arange(padded, dtype=np.float32) * np.float32(-np.log(max_period) * 2 / head_dim)
    frequencies = graph.constant(np.exp(exponents, dtype=np.float32))
    positions = op.Add(op.Unsqueeze(position, graph.constant([1])), offsets)
    angles = op.Mul(op.Unsqueeze(op.Cast(positions, to=1), graph.constant([2])), frequencies)
    tables = (op.Cos(angles), op.Sin(angles))
    if padded == half:
        return tables
    bounds = (graph.constant([0]), graph.constant([half]), graph.constant([2]))
    return op.Slice(tables[0], *bounds), op.Slice(tables[1], *bounds)


def rotate(graph: Graph, x: Value, tables: tuple[Value, Value], heads: int) -> Value:
    """Rotary embedding of x [B, S, heads * head_dim] on interleaved pairs (2i, 2i + 1)."""
    return graph.op.RotaryEmbedding(x, *tables, interleaved=1, num_heads=heads)


def split_heads(graph: Graph, x: Value, heads: int, head_dim: int) -> Value:
    """[B, S, heads * head_dim] -> [B, heads, S, head_dim]."""
    op = graph.op
    return op.Transpose(op.Reshape(x, graph.constant([0, 0, heads, head_dim])), perm=[0, 2, 1, 3])


def gated_feed_forward(weights: Weights, x: Value, key: str) -> Value:
    """linear_out(silu(g) * u) with [g | u] = linear_in(x): the first half is the gate."""
    op = weights.graph.op
    gate, up = op.Split(weights.linear(x, f"{key}.linear_in.weight"), axis=-1, num_outputs=2, _outputs=2)
    return weights.linear(op.Mul(op.Mul(gate, op.Sigmoid(gate)), up), f"{key}.linear_out.weight")
