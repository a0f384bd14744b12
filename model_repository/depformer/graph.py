"""The graph of `depformer`: the 8 agent steps unrolled, each sampling its codebook inside the graph.

The checkpoint's steps 8 to 15 predict the user's side, which is given; they influence nothing and are left out.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from model_repository.checkpoint.geometry import AGENT_CODEBOOKS, LmGeometry
from model_repository.checkpoint.weights.tensors import TensorSource
from model_repository.graph.builder import ROWS, Graph, Value
from model_repository.graph.layers import added_rms_norm, gated_feed_forward
from model_repository.graph.sampling import GUESSES, sample, sample_by_rejection
from model_repository.graph.weights import Weights
from model_repository.quantize.config import QuantizationConfig
from model_repository.variants import Device, Precision


def build(
    geometry: LmGeometry,
    source: TensorSource,
    quantization: QuantizationConfig | None = None,
    device: Device = Device.CPU,
    activations: Precision = Precision.FP32,
) -> Graph:
    """`quantization`: how matrices are kept; `activations`: the precision of matmuls and attention. For CUDA all shapes
    follow from B and nothing branches, so that a run can be captured.

    Inputs: hidden [B, dim] float32; text_token [B] int64; noise [B, 8, draws] float32, top_k [B] int64 and temperature
    [B] float32 for the audio tokens. Output: codes [B, 8] int64. On a CPU a token takes GUESSES + 1 draws, of which
    mostly the first decides without sorting; on CUDA one, because one launch sorts all rows.
    """
    graph = Graph("depformer")
    op = graph.op
    cuda = device is Device.CUDA
    hidden = graph.input("hidden", ir.DataType.FLOAT, [ROWS, geometry.temporal.dim])
    text_token = graph.input("text_token", ir.DataType.INT64, [ROWS])
    noise = graph.input("noise", ir.DataType.FLOAT, [ROWS, AGENT_CODEBOOKS, 1 if cuda else GUESSES + 1])
    top_k = graph.input("top_k", ir.DataType.INT64, [ROWS])
    temperature = graph.input("temperature", ir.DataType.FLOAT, [ROWS])

    weights = Weights(graph, source, quantization, activations)
    noises = op.Split(noise, axis=1, num_outputs=AGENT_CODEBOOKS, _outputs=AGENT_CODEBOOKS)
    attend = _Attention(graph, geometry, fused=activations is not Precision.FP32)
    entries = [f"depformer_in.{step}.weight" for step in range(AGENT_CODEBOOKS)]
    read = weights.to_compute_dtype(weights.smoothed(hidden, entries[0]))
    token, table = text_token, "depformer_text_emb.weight"
    codes = []
    for step in range(AGENT_CODEBOOKS):
        entry = weights.to_float32(weights.linear(read, entries[step]))
        x = _layers(weights, attend, geometry, entry, weights.embedding([table], token), step, fused=cuda)
        logits = weights.to_float32(weights.linear(weights.to_compute_dtype(x), f"linears.{step}.weight"))
        logits.name = f"logits.{step}"
        draws = op.Squeeze(noises[step], graph.constant([1]))
        if cuda:
            token = sample(graph, logits, draws, top_k, temperature, geometry.card)
        else:
            token = sample_by_rejection(graph, logits, geometry.card, draws, top_k, temperature)
        codes.append(op.Unsqueeze(token, graph.constant([1])))
        table = f"depformer_emb.{step}.weight"
    graph.output("codes", op.Concat(*codes, axis=1))
    return graph


class _Attention:
    """Attention over the steps so far of each layer, whose keys and values are concatenated.

    `fused`: by ONNX Attention, with keys and values [B, steps, dim], whose heads need no transposition; else by matmuls
    and a softmax, with keys and values [B, heads, steps, head_dim].
    """

    def __init__(self, graph: Graph, geometry: LmGeometry, fused: bool) -> None:
        self._graph = graph
        self._transformer = geometry.depformer
        self._fused = fused
        self._past: dict[int, tuple[Value, Value]] = {}

    def __call__(self, layer: int, query: Value, key: Value, value: Value) -> Value:
        """[B, dim] each -> [B, dim]."""
        graph, op, shape = self._graph, self._graph.op, self._transformer
        if self._fused:
            axis, first = graph.constant([1]), layer not in self._past
            keys, values = self._appended(layer, op.Unsqueeze(key, axis), op.Unsqueeze(value, axis), axis=1)
            if first:  # attention over one step gives its value
                return value
            mixed = op.Attention(
                op.Unsqueeze(query, axis), keys, values, q_num_heads=shape.num_heads, kv_num_heads=shape.num_heads
            )
            return op.Squeeze(mixed, axis)
        heads = graph.constant([0, shape.num_heads, 1, shape.head_dim])
        query, key, value = (op.Reshape(part, heads) for part in (query, key, value))
        keys, values = self._appended(layer, key, value, axis=2)
        scaled = op.Mul(query, graph.constant(np.float32(shape.head_dim**-0.5)))
        scores = op.MatMul(scaled, op.Transpose(keys, perm=[0, 1, 3, 2]))
        return op.Reshape(op.MatMul(op.Softmax(scores, axis=-1), values), graph.constant([0, shape.dim]))

    def _appended(self, layer: int, key: Value, value: Value, axis: int) -> tuple[Value, Value]:
        if layer in self._past:
            keys, values = self._past[layer]
            key, value = self._graph.op.Concat(keys, key, axis=axis), self._graph.op.Concat(values, value, axis=axis)
        self._past[layer] = key, value
        return key, value


def _layers(
    weights: Weights,
    attend: _Attention,
    geometry: LmGeometry,
    x: Value,
    added: Value,
    step: int,
    fused: bool,
) -> Value:
    """All layers of one step on x + added, with the step's own weights and each layer's shared norms: [B, dim]."""
    op, dim = weights.graph.op, geometry.depformer.dim
    for layer in range(geometry.depformer.num_layers):
        name = f"depformer.layers.{layer}"
        x, normed = added_rms_norm(weights, x, added, f"{name}.norm1.alpha", fused)
        packed = slice(step * 3 * dim, (step + 1) * 3 * dim)
        projected = weights.linear(weights.to_compute_dtype(normed), f"{name}.self_attn.in_proj_weight", packed)
        attended = attend(layer, *op.Split(projected, axis=-1, num_outputs=3, _outputs=3))
        out = slice(step * dim, (step + 1) * dim)
        attended = weights.to_float32(weights.linear(attended, f"{name}.self_attn.out_proj.weight", out))
        x, normed = added_rms_norm(weights, x, attended, f"{name}.norm2.alpha", fused)
        added = weights.to_float32(
            gated_feed_forward(weights, weights.to_compute_dtype(normed), f"{name}.gating.{step}")
        )
    return op.Add(x, added)
