"""The graph of `depformer`: the 8 agent steps unrolled, each sampling its codebook inside the graph.

The checkpoint's steps 8 to 15 predict the user's side, which is given; they influence nothing and are left out.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from model_repository.checkpoint.geometry import AGENT_CODEBOOKS, LmGeometry
from model_repository.checkpoint.tensors import TensorSource
from model_repository.graph.builder import ROWS, Graph, Value
from model_repository.graph.layers import Weights, gated_feed_forward, rms_norm
from model_repository.graph.sampling import GUESSES, sample_guessing
from model_repository.quantize.plan import Plan
from model_repository.variants import Device, Precision


def build(
    geometry: LmGeometry,
    source: TensorSource,
    plan: Plan | None = None,
    device: Device = Device.CPU,
    activations: Precision = Precision.FP32,
) -> Graph:
    """`plan`: how matrices are kept; `activations`: the precision of products and attention. For CUDA all shapes follow
    from B and nothing branches, so that a run can be captured.

    Inputs: hidden [B, dim] float32; text_token [B] int64; noise [B, 8, GUESSES + 1] float32, top_k [B] int64 and
    temperature [B] float32 for the audio tokens. Output: codes [B, 8] int64.
    """
    graph = Graph("depformer")
    op = graph.op
    hidden = graph.input("hidden", ir.DataType.FLOAT, [ROWS, geometry.temporal.dim])
    text_token = graph.input("text_token", ir.DataType.INT64, [ROWS])
    noise = graph.input("noise", ir.DataType.FLOAT, [ROWS, AGENT_CODEBOOKS, GUESSES + 1])
    top_k = graph.input("top_k", ir.DataType.INT64, [ROWS])
    temperature = graph.input("temperature", ir.DataType.FLOAT, [ROWS])

    weights = Weights(graph, source, plan, activations)
    branching = device is not Device.CUDA
    noises = op.Split(noise, axis=1, num_outputs=AGENT_CODEBOOKS, _outputs=AGENT_CODEBOOKS)
    history = _History(graph, geometry)
    entries = [f"depformer_in.{step}.weight" for step in range(AGENT_CODEBOOKS)]
    read = weights.narrow(weights.smoothed(hidden, entries[0]))
    token, table = text_token, "depformer_text_emb.weight"
    codes = []
    for step in range(AGENT_CODEBOOKS):
        entry = weights.wide(weights.linear(read, entries[step]))
        x = op.Add(entry, weights.rows([table], token))
        for layer in range(geometry.depformer.num_layers):
            x = _layer(weights, history, geometry, x, layer, step)
        logits = weights.wide(weights.linear(weights.narrow(x), f"linears.{step}.weight"))
        logits.name = f"logits.{step}"
        draws = op.Squeeze(noises[step], graph.constant([1]))
        token = sample_guessing(graph, logits, geometry.card, draws, top_k, temperature, branching)
        codes.append(op.Unsqueeze(token, graph.constant([1])))
        table = f"depformer_emb.{step}.weight"
    graph.output("codes", op.Concat(*codes, axis=1))
    return graph


class _History:
    """Keys and values of the steps so far, per layer: [B, heads, steps, head_dim]."""

    def __init__(self, graph: Graph, geometry: LmGeometry) -> None:
        layers = geometry.depformer.num_layers
        self._graph = graph
        self._keys: list[Value | None] = [None] * layers
        self._values: list[Value | None] = [None] * layers

    def append(self, layer: int, key: Value, value: Value) -> tuple[Value, Value]:
        for past, new in ((self._keys, key), (self._values, value)):
            past[layer] = new if past[layer] is None else self._graph.op.Concat(past[layer], new, axis=2)
        return self._keys[layer], self._values[layer]


def _layer(weights: Weights, history: _History, geometry: LmGeometry, x: Value, layer: int, step: int) -> Value:
    """One layer of one step, with the step's own weights and the layer's shared norms: [B, dim] -> [B, dim]."""
    graph, op = weights.graph, weights.graph.op
    transformer = geometry.depformer
    dim, heads, head_dim = transformer.dim, transformer.num_heads, transformer.head_dim
    name = f"depformer.layers.{layer}"

    normed = weights.narrow(rms_norm(weights, x, f"{name}.norm1.alpha"))
    packed = slice(step * 3 * dim, (step + 1) * 3 * dim)
    projected = weights.linear(normed, f"{name}.self_attn.in_proj_weight", packed)
    split = op.Split(projected, axis=-1, num_outputs=3, _outputs=3)
    query, key, value = (op.Reshape(part, graph.constant([0, heads, 1, head_dim])) for part in split)
    keys, values = history.append(layer, key, value)
    if weights.activations is Precision.FP32:
        scale = graph.constant(np.float32(head_dim**-0.5))
        scores = op.MatMul(op.Mul(query, scale), op.Transpose(keys, perm=[0, 1, 3, 2]))
        mixed = op.MatMul(op.Softmax(scores, axis=-1), values)
    else:
        mixed = op.Attention(query, keys, values)
    attended = op.Reshape(mixed, graph.constant([0, dim]))
    out = slice(step * dim, (step + 1) * dim)
    x = op.Add(x, weights.wide(weights.linear(attended, f"{name}.self_attn.out_proj.weight", out)))
    normed = weights.narrow(rms_norm(weights, x, f"{name}.norm2.alpha"))
    return op.Add(x, weights.wide(gated_feed_forward(weights, normed, f"{name}.gating.{step}")))
