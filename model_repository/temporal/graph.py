"""The graph of `temporal`: columns of 17 tokens -> hidden state and sampled text token, keys and values in rings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from model_repository.checkpoint.geometry import LmGeometry
from model_repository.checkpoint.tensors import TensorSource
from model_repository.graph.attention import CacheScales, FilledAttention, Ring, StepAttention
from model_repository.graph.builder import ROWS, Graph, Value
from model_repository.graph.layers import (
    Weights,
    gated_feed_forward,
    rms_norm,
    rotary_tables,
    rotate,
    split_heads,
    summed,
)
from model_repository.graph.sampling import sample
from model_repository.quantize.plan import Plan
from model_repository.variants import Device, Precision


def build(
    geometry: LmGeometry,
    source: TensorSource,
    plan: Plan | None = None,
    caches: Sequence[CacheScales] | None = None,
    device: Device = Device.CPU,
    activations: Precision = Precision.FP32,
) -> Graph:
    """`plan`: how matrices are kept; `caches`: how keys and values of each layer are, float32 by default.
    `activations`: the precision of products and attention.

    Inputs, for B rows and S columns (S = 1 in a step; B = 1 where S > 1; for CUDA S is 1 always, so that all shapes
    follow from B and a run can be captured):

    columns [B, S, 17] int64; embeddings [B, S, dim] float32, used instead of the tokens in columns whose text token is
    -1; position [B] int64, the first column's index; noise [B, 1] float32, top_k [B] int64 and temperature [B] float32
    for the text token. Outputs, both of the last column: hidden [B, dim] float32 (after the final norm) and
    text_token [B] int64, sampled for the next column.
    """
    graph = Graph("temporal")
    op = graph.op
    transformer = geometry.temporal
    static = device is Device.CUDA
    count = 1 if static else "columns"
    columns = graph.input("columns", ir.DataType.INT64, [ROWS, count, geometry.num_streams])
    embeddings = graph.input("embeddings", ir.DataType.FLOAT, [ROWS, count, transformer.dim])
    position = graph.input("position", ir.DataType.INT64, [ROWS])
    noise = graph.input("noise", ir.DataType.FLOAT, [ROWS, 1])
    top_k = graph.input("top_k", ir.DataType.INT64, [ROWS])
    temperature = graph.input("temperature", ir.DataType.FLOAT, [ROWS])

    weights = Weights(graph, source, plan, activations)
    x = _embed(weights, geometry, columns, embeddings)
    steps = None if static else op.Squeeze(op.Shape(columns, start=1, end=2), graph.constant([0]))
    tables = rotary_tables(graph, position, steps, transformer.head_dim, transformer.max_period)
    attend: FilledAttention | StepAttention
    if steps is None:
        attend = StepAttention(graph, position, transformer)
    else:
        attend = FilledAttention(graph, position, steps, transformer)
    heads, head_dim = transformer.num_heads, transformer.head_dim
    for index in range(transformer.num_layers):
        layer = f"transformer.layers.{index}"
        normed = weights.narrow(rms_norm(weights, x, f"{layer}.norm1.alpha"))
        projected = weights.linear(normed, f"{layer}.self_attn.in_proj_weight")
        query, key, value = op.Split(projected, axis=-1, num_outputs=3, _outputs=3)
        query, key = (weights.narrow(rotate(graph, weights.wide(new), tables, heads)) for new in (query, key))
        key, value = (split_heads(graph, new, heads, head_dim) for new in (key, value))
        ring = Ring(graph, f"layers.{index}", transformer, caches[index] if caches else None, activations)
        attended = attend(query, ring, *ring.write(key, value, position))
        x = op.Add(x, weights.wide(weights.linear(attended, f"{layer}.self_attn.out_proj.weight")))
        normed = weights.narrow(rms_norm(weights, x, f"{layer}.norm2.alpha"))
        x = op.Add(x, weights.wide(gated_feed_forward(weights, normed, f"{layer}.gating")))
        x.name = f"layers.{index}.out"

    last = op.Squeeze(x, graph.constant([1])) if static else op.Gather(x, graph.constant(np.int64(-1)), axis=1)
    hidden = rms_norm(weights, last, "out_norm.alpha")
    text = "text_linear.weight"
    text_logits = weights.wide(weights.linear(weights.narrow(weights.smoothed(hidden, text)), text))
    text_logits.name = "text_logits"
    graph.output("hidden", hidden)
    vocabulary = geometry.text_card if static else None
    graph.output("text_token", sample(graph, text_logits, noise, top_k, temperature, vocabulary))
    return graph


def _embed(weights: Weights, geometry: LmGeometry, columns: Value, embeddings: Value) -> Value:
    """Sum of a column's 17 embeddings, audio streams first and text last (the reference's order) -> [B, S, dim]."""
    graph, op = weights.graph, weights.graph.op
    streams, rows = geometry.num_streams - 1, geometry.card + 1
    tokens = op.Max(columns, graph.constant(np.int64(0)))
    text, audio = op.Split(tokens, graph.constant([1, streams]), axis=2, _outputs=2)
    first_rows = graph.constant(np.arange(streams, dtype=np.int64) * rows)
    tables = [f"emb.{stream}.weight" for stream in range(streams)]
    audio_embeddings = weights.rows(tables, op.Add(audio, first_rows))
    text_embedding = weights.rows(["text_emb.weight"], op.Squeeze(text, graph.constant([2])))
    embedded = summed(graph, audio_embeddings, 2, streams, text_embedding)
    first_stream = op.Slice(columns, graph.constant([0]), graph.constant([1]), graph.constant([2]))
    given = op.Less(first_stream, graph.constant(np.int64(0)))
    return op.Where(given, embeddings, embedded)
