"""The graph of `mimi_decoder`: codebook sums, upsampling, transformer and SEANet decoder of one frame."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from model_repository.checkpoint.geometry import AGENT_CODEBOOKS, MimiGeometry
from model_repository.checkpoint.weights.tensors import TensorSource
from model_repository.graph.builder import ROWS, Float32, Graph, Value
from model_repository.graph.convolution import ActiveRows, Convolutions
from model_repository.graph.layers import summed
from model_repository.graph.mimi import centroids, codebook_keys, residual_block, transformer
from model_repository.graph.weights import Weights


def build(geometry: MimiGeometry, source: TensorSource) -> Graph:
    """Inputs: codes [B, 8] int64; position [B] int64 in latent steps; active [B] bool, the rows that take part.

    Output: pcm [B, 1920] float32.
    """
    graph = Graph("mimi_decoder")
    op = graph.op
    codes = graph.input("codes", ir.DataType.INT64, [ROWS, AGENT_CODEBOOKS])
    position = graph.input("position", ir.DataType.INT64, [ROWS])
    active = ActiveRows(graph, graph.input("active", ir.DataType.BOOL, [ROWS]))

    weights = Weights(graph, source)
    sound = Convolutions(weights, active)
    latent = op.Unsqueeze(_dequantize(weights, geometry, codes), graph.constant([1]))
    steps = geometry.steps_per_frame
    upsample = "upsample.convtr.convtr.convtr"
    x = sound.upsample(latent, upsample, stride=steps)
    x = transformer(weights, x, "decoder_transformer", geometry, position)
    x = sound.convolution(x, "decoder.model.0.conv.conv", steps)
    module = 2
    for ratio in geometry.ratios:
        x = sound.elu_transposed(x, f"decoder.model.{module}.convtr.convtr", steps, stride=ratio)
        steps *= ratio
        x = residual_block(sound, x, f"decoder.model.{module + 1}", steps)
        module += 3
    x = sound.elu_convolution(x, f"decoder.model.{module}.conv.conv", steps)
    graph.output("pcm", op.Squeeze(x, graph.constant([2])))
    return graph


def _dequantize(weights: Weights, geometry: MimiGeometry, codes: Value) -> Value:
    """codes [B, 8] -> latent [B, dim].

    Each branch sums its codebooks' entries and projects; the projection is folded into the tables, so that what is
    looked up is already a latent: sum over codebooks of table[codebook][code].
    """
    graph, op = weights.graph, weights.graph.op
    bins, dim, books = geometry.codebook_size, geometry.dimension, codebook_keys()

    def projected_tables() -> Float32:
        tables = []
        for index, key in enumerate(books):
            branch = "rvq_first" if index == 0 else "rvq_rest"
            projection = weights.source.read(f"quantizer.{branch}.output_proj.weight")[:, :, 0]
            tables.append(centroids(weights.source, key) @ projection.T)
        return np.concatenate(tables)

    table = graph.weight("quantizer.projected_tables", (len(books) * bins, dim), projected_tables)
    first_rows = graph.constant(np.arange(len(books), dtype=np.int64) * bins)
    return summed(graph, op.Gather(table, op.Add(codes, first_rows)), 1, len(books))
