"""The graph of `temporal`: columns of 17 tokens -> hidden state and sampled text token, keys and values in rings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from model_repository.checkpoint.geometry import LmGeometry, TransformerGeometry
from model_repository.checkpoint.weights.tensors import TensorSource
from model_repository.graph.attention import (
    Attention,
    CacheScales,
    CausalAttention,
    Columns,
    FilledAttention,
    Int8KvAttention,
    Ring,
)
from model_repository.graph.builder import COLUMNS, ROWS, Graph, Value
from model_repository.graph.layers import (
    added_rms_norm,
    gated_feed_forward,
    rms_norm,
    rotary_tables,
    summed,
)
from model_repository.graph.sampling import sample
from model_repository.graph.weights import Weights
from model_repository.quantize.config import QuantizationConfig
from model_repository.variants import CachePrecision, Device, Precision

CUDA_TEXT_TOP_K = 256
"""Largest top_k of the text token on CUDA. ONNX Runtime finds up to so many candidates of all rows in one launch. For
more it sorts each row by itself, in 14 launches."""


def max_text_top_k(geometry: LmGeometry, device: Device) -> int:
    """Largest top_k of the text token."""
    return min(CUDA_TEXT_TOP_K, geometry.text_card) if device is Device.CUDA else geometry.text_card


def build(
    geometry: LmGeometry,
    source: TensorSource,
    quantization: QuantizationConfig | None = None,
    caches: Sequence[CacheScales] | None = None,
    device: Device = Device.CPU,
    activations: Precision = Precision.FP32,
) -> Graph:
    """`quantization`: how matrices are kept; `caches`: how keys and values of each layer are, float32 by default.
    `activations`: the precision of matmuls and attention.

    Inputs, for B rows and S columns (S = 1 in a step; B = 1 where S > 1):

    columns [B, S, 17] int64; embeddings [B, S, dim] float32, used instead of the tokens in columns whose text token is
    -1; offsets [S] int64, which is 0..S-1; position [B] int64, the first column's index; filled [B] int64, slots of the
    ring that attention reads: min(position + S, window), or 1 for rows whose result is not needed; noise [B, 1]
    float32, top_k [B] int64 and temperature [B] float32 for the text token. Outputs, both of the last column: hidden
    [B, dim] float32 (after the final norm) and text_token [B] int64, sampled for the next column.
    """
    graph = Graph("temporal")
    op = graph.op
    transformer = geometry.temporal
    columns = graph.input("columns", ir.DataType.INT64, [ROWS, COLUMNS, geometry.num_streams])
    embeddings = graph.input("embeddings", ir.DataType.FLOAT, [ROWS, COLUMNS, transformer.dim])
    offsets = graph.input("offsets", ir.DataType.INT64, [COLUMNS])
    position = graph.input("position", ir.DataType.INT64, [ROWS])
    filled = graph.input("filled", ir.DataType.INT64, [ROWS])
    noise = graph.input("noise", ir.DataType.FLOAT, [ROWS, 1])
    top_k = graph.input("top_k", ir.DataType.INT64, [ROWS])
    temperature = graph.input("temperature", ir.DataType.FLOAT, [ROWS])

    weights = Weights(graph, source, quantization, activations)
    x = _embed(weights, geometry, columns, embeddings)
    angles = rotary_tables(graph, position, offsets, transformer.head_dim, transformer.max_period)
    layers = [f"transformer.layers.{index}" for index in range(transformer.num_layers)]
    caches = caches or [CacheScales()] * len(layers)
    attend = _attention(weights, Columns(position, filled, angles), transformer, device, caches[0].precision)
    fused = device is Device.CUDA
    normed = rms_norm(weights, x, f"{layers[0]}.norm1.alpha")
    for index, layer in enumerate(layers):
        projected = weights.linear(weights.to_compute_dtype(normed), f"{layer}.self_attn.in_proj_weight")
        ring = Ring(graph, f"layers.{index}", attend.cache_shape, caches[index], activations)
        attended = weights.linear(attend(projected, ring), f"{layer}.self_attn.out_proj.weight")
        attended = weights.to_float32(attended)
        x, normed = added_rms_norm(weights, x, attended, f"{layer}.norm2.alpha", fused)
        fed = weights.to_float32(gated_feed_forward(weights, weights.to_compute_dtype(normed), f"{layer}.gating"))
        following = "out_norm.alpha" if layer == layers[-1] else f"{layers[index + 1]}.norm1.alpha"
        x, normed = added_rms_norm(weights, x, fed, following, fused)
        x.name = f"layers.{index}.out"

    hidden = op.Gather(normed, graph.constant(np.int64(-1)), axis=1)
    text = "text_linear.weight"
    text_logits = weights.to_float32(weights.linear(weights.to_compute_dtype(weights.smoothed(hidden, text)), text))
    text_logits.name = "text_logits"
    graph.output("hidden", hidden)
    candidates = max_text_top_k(geometry, device) if device is Device.CUDA else None
    graph.output("text_token", sample(graph, text_logits, noise, top_k, temperature, candidates))
    return graph


def _attention(
    weights: Weights, columns: Columns, geometry: TransformerGeometry, device: Device, cache: CachePrecision
) -> Attention:
    if device is Device.CPU:
        return FilledAttention(weights.graph, columns, geometry)
    return (Int8KvAttention if cache is CachePrecision.INT8 else CausalAttention)(weights, columns, geometry)


def _embed(weights: Weights, geometry: LmGeometry, columns: Value, embeddings: Value) -> Value:
    """Sum of a column's 17 embeddings, audio streams first and text last (the reference's order) -> [B, S, dim]."""
    graph, op = weights.graph, weights.graph.op
    streams, rows = geometry.num_streams - 1, geometry.card + 1
    tokens = op.Max(columns, graph.constant(np.int64(0)))
    text, audio = op.Split(tokens, graph.constant([1, streams]), axis=2, _outputs=2)
    first_rows = graph.constant(np.arange(streams, dtype=np.int64) * rows)
    tables = [f"emb.{stream}.weight" for stream in range(streams)]
    audio_embeddings = weights.embedding(tables, op.Add(audio, first_rows))
    text_embedding = weights.embedding(["text_emb.weight"], op.Squeeze(text, graph.constant([2])))
    embedded = summed(graph, audio_embeddings, 2, streams, text_embedding)
    first_stream = op.Slice(columns, graph.constant([0]), graph.constant([1]), graph.constant([2]))
    given = op.Less(first_stream, graph.constant(np.int64(0)))
    return op.Where(given, embeddings, embedded)
