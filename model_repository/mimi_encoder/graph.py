"""The graph of `mimi_encoder`: SEANet encoder, transformer, downsampling and residual quantization of one frame."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from model_repository.checkpoint.geometry import MimiGeometry
from model_repository.checkpoint.weights.tensors import TensorSource
from model_repository.graph.builder import ROWS, Graph, Value
from model_repository.graph.convolution import ActiveRows, Convolutions
from model_repository.graph.mimi import centroids, codebook_keys, residual_block, transformer
from model_repository.graph.weights import Weights


def build(geometry: MimiGeometry, source: TensorSource) -> Graph:
    """Inputs: pcm [B, 1920] float32; position [B] int64 in latent steps; active [B] bool, the rows that take part.

    Output: codes [B, 8] int64.
    """
    graph = Graph("mimi_encoder")
    op = graph.op
    pcm = graph.input("pcm", ir.DataType.FLOAT, [ROWS, geometry.frame_size])
    position = graph.input("position", ir.DataType.INT64, [ROWS])
    active = ActiveRows(graph, graph.input("active", ir.DataType.BOOL, [ROWS]))

    weights = Weights(graph, source)
    sound = Convolutions(weights, active)
    length = geometry.frame_size
    x = op.Unsqueeze(pcm, graph.constant([2]))
    x = sound.convolution(x, "encoder.model.0.conv.conv", length)
    module = 1
    for ratio in reversed(geometry.ratios):
        x = residual_block(sound, x, f"encoder.model.{module}", length)
        x = sound.elu_convolution(x, f"encoder.model.{module + 2}.conv.conv", length, stride=ratio)
        length //= ratio
        module += 3
    x = sound.elu_convolution(x, f"encoder.model.{module + 1}.conv.conv", length)
    x = transformer(weights, x, "encoder_transformer", geometry, position)
    first = op.Equal(position, graph.constant(np.int64(0)))
    x = sound.convolution(x, "downsample.conv.conv.conv", length, stride=geometry.steps_per_frame, first=first)
    graph.output("codes", _quantize(weights, geometry, x))
    return graph


def _quantize(weights: Weights, geometry: MimiGeometry, latent: Value) -> Value:
    """Nearest centroids of latent [B, 1, dim] -> codes [B, 8].

    Both branches start from the same latent; the acoustic one then quantizes what its previous codebooks left over.
    """
    graph, op = weights.graph, weights.graph.op
    latent = op.Squeeze(latent, graph.constant([1]))
    bins, dim = geometry.codebook_size, geometry.codebook_dim
    codes = []
    remainder = None
    for index, key in enumerate(codebook_keys()):
        if index < 2:
            branch = "rvq_first" if index == 0 else "rvq_rest"
            remainder = _project(weights, latent, f"quantizer.{branch}.input_proj.weight")
        code = _nearest(weights, geometry, remainder, key)
        codes.append(op.Unsqueeze(code, graph.constant([1])))
        if 0 < index < len(codebook_keys()) - 1:
            table = graph.weight(f"{key}.table", (bins, dim), partial(centroids, weights.source, key))
            remainder = op.Sub(remainder, op.Gather(table, code))
    return op.Concat(*codes, axis=1)


def _nearest(weights: Weights, geometry: MimiGeometry, x: Value, key: str) -> Value:
    """argmin |x - E|^2 = argmin |E|^2 - 2 x E over the entries E (|x|^2 does not depend on them): [B, dim] -> [B]."""
    graph, bins = weights.graph, geometry.codebook_size
    doubled = graph.weight(
        f"{key}.doubled", (geometry.codebook_dim, bins), lambda: 2 * centroids(weights.source, key).T
    )
    norms = graph.weight(f"{key}.norms", (bins,), lambda: np.square(centroids(weights.source, key)).sum(axis=1))
    return graph.op.ArgMin(graph.op.Sub(norms, graph.op.MatMul(x, doubled)), axis=-1, keepdims=0)


def _project(weights: Weights, x: Value, key: str) -> Value:
    """A 1x1 convolution [out, in, 1] as a matrix product: [B, in] -> [B, out]."""
    rows, columns, _ = weights.source.shape(key)
    matrix = weights.graph.weight(f"{key}.T", (columns, rows), lambda: weights.source.read(key)[:, :, 0].T)
    return weights.graph.op.MatMul(x, matrix)
