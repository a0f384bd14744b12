"""What both halves of Mimi are made of: residual blocks, the streaming transformer, codebook centroids."""

from __future__ import annotations

import numpy as np

from model_repository.checkpoint.geometry import AGENT_CODEBOOKS, MimiGeometry
from model_repository.checkpoint.weights.tensors import TensorSource
from model_repository.graph.attention import MaskedAttention, Ring
from model_repository.graph.builder import Float32, Value
from model_repository.graph.convolution import Convolutions
from model_repository.graph.layers import layer_norm, rotary_tables, rotate, split_heads
from model_repository.graph.weights import Weights

_USAGE_FLOOR = 1e-5
"""Least cluster usage a centroid's sum is divided by (the reference's quantizer epsilon)."""


def residual_block(sound: Convolutions, x: Value, key: str, length: int) -> Value:
    """x + conv1(elu(conv3(elu(x)))), of `length` steps."""
    y = sound.elu_convolution(x, f"{key}.block.1.conv.conv", length)
    return sound.elu_convolution(y, f"{key}.block.3.conv.conv", length, added=x)


def transformer(weights: Weights, x: Value, key: str, geometry: MimiGeometry, position: Value) -> Value:
    """Mimi's transformer on one frame: x [B, 2, dim] -> [B, 2, dim]; position [B] counts latent steps."""
    graph, op = weights.graph, weights.graph.op
    shape, steps = geometry.transformer, geometry.steps_per_frame
    tables = rotary_tables(graph, position, graph.constant(np.arange(steps)), shape.head_dim, shape.max_period)
    attend = MaskedAttention(graph, position, steps, shape)
    for index in range(shape.num_layers):
        layer = f"{key}.transformer.layers.{index}"
        projected = weights.linear(layer_norm(weights, x, f"{layer}.norm1"), f"{layer}.self_attn.in_proj_weight")
        query, new_key, new_value = op.Split(projected, axis=-1, num_outputs=3, _outputs=3)
        query, new_key = (rotate(graph, part, tables, shape.num_heads) for part in (query, new_key))
        new_key, new_value = (
            split_heads(graph, part, shape.num_heads, shape.head_dim) for part in (new_key, new_value)
        )
        ring = Ring(graph, f"layers.{index}", (shape.num_heads, shape.window, shape.head_dim), zeroed=True)
        keys, values = ring.write(new_key, new_value, position)
        attended = weights.linear(attend(query, keys, values), f"{layer}.self_attn.out_proj.weight")
        x = op.Add(x, op.Mul(attended, weights.tensor(f"{layer}.layer_scale_1.scale")))
        normed = layer_norm(weights, x, f"{layer}.norm2")
        hidden = op.Gelu(weights.linear(normed, f"{layer}.linear1.weight"), approximate="none")
        hidden = weights.linear(hidden, f"{layer}.linear2.weight")
        x = op.Add(x, op.Mul(hidden, weights.tensor(f"{layer}.layer_scale_2.scale")))
    return x


def codebook_keys() -> list[str]:
    """Checkpoint prefixes of the codebooks in use, in code order: the semantic one, then the acoustic ones."""
    rest = [f"quantizer.rvq_rest.vq.layers.{index}._codebook" for index in range(AGENT_CODEBOOKS - 1)]
    return ["quantizer.rvq_first.vq.layers.0._codebook", *rest]


def centroids(source: TensorSource, key: str) -> Float32:
    """A codebook's entries [bins, dim]: running sums over usage, as the checkpoint stores them."""
    usage = source.read(f"{key}.cluster_usage").clip(min=_USAGE_FLOOR)
    entries: Float32 = source.read(f"{key}.embedding_sum") / usage[:, None]
    return entries
