"""From a checkpoint to the four graphs of a variant: calibrate, smooth, and declare graphs whose weights are quantized.

Each step is a function that returns its result. The weights are read, quantized and written by `Graph.save`, one at a
time, which returns the errors of the rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from model_repository.checkpoint.folder import Checkpoint
from model_repository.checkpoint.geometry import AGENT_CODEBOOKS
from model_repository.checkpoint.weights.tensors import TensorSource
from model_repository.depformer import graph as depformer
from model_repository.graph.attention import CacheScales
from model_repository.graph.builder import Graph
from model_repository.mimi_decoder import graph as mimi_decoder
from model_repository.mimi_encoder import graph as mimi_encoder
from model_repository.quantize.calibration import calibrate
from model_repository.quantize.config import TEXT_HEAD, QuantizationConfig, smoothing_of
from model_repository.quantize.depth_smoothing import reader_factors, smooth_depth
from model_repository.quantize.smoothing_scales import Scaling, scaled
from model_repository.quantize.temporal_smoothing import smooth_temporal
from model_repository.temporal import graph as temporal
from model_repository.variants import CachePrecision, Precision, Variant

HEADROOM = 1.5
"""How much larger than in calibration keys and values may be before int8 cuts them off. Seen: 1.3 (`calibration`)."""

DEPTH_ENTRIES = tuple(f"depformer_in.{step}.weight" for step in range(AGENT_CODEBOOKS))
"""Matrices of the depth transformer that read the hidden state."""


def graphs_of(
    source: Checkpoint, variant: Variant, report: Callable[[float], None] = lambda done: None
) -> Mapping[str, Graph]:
    """Return the graphs by model. `report` receives the fraction done of calibration and smoothing."""
    geometry = source.geometry
    tensors, quantization, caches = _temporal(source, variant, report)
    depth: TensorSource = source.lm
    if variant.depformer is Precision.INT8:
        depth = smoothed(source.lm, smooth_depth(source.lm, geometry.lm), DEPTH_ENTRIES)
    return {
        "mimi_encoder": mimi_encoder.build(geometry.mimi, source.mimi),
        "temporal": temporal.build(geometry.lm, tensors, quantization, caches, variant.device, variant.activations),
        "depformer": depformer.build(
            geometry.lm, depth, QuantizationConfig(variant.depformer), variant.device, variant.activations
        ),
        "mimi_decoder": mimi_decoder.build(geometry.mimi, source.mimi),
    }


def _temporal(
    source: Checkpoint, variant: Variant, report: Callable[[float], None]
) -> tuple[TensorSource, QuantizationConfig, Sequence[CacheScales]]:
    """Tensors of the temporal model, the precision of each, and the scales of each layer's keys and values."""
    shape = source.geometry.lm.temporal
    if not (variant.calibrated or variant.cache is CachePrecision.INT8):
        return source.lm, QuantizationConfig(variant.temporal), [CacheScales(variant.cache)] * shape.num_layers
    bits = 4 if variant.temporal is Precision.INT4 else 8
    smoothing = smooth_temporal(source.lm, shape, calibrate(source), bits, report)
    readers = [TEXT_HEAD] if variant.calibrated else []
    caches = [
        CacheScales(variant.cache, HEADROOM * key_peak / 127, HEADROOM * value_peak / 127)
        for key_peak, value_peak in smoothing.peaks
    ]
    tensors = smoothed(source.lm, smoothing.scalings, readers)
    return tensors, QuantizationConfig(variant.temporal, smoothing.importance), caches


def smoothed(source: TensorSource, scalings: Mapping[str, Scaling], readers: Sequence[str]) -> TensorSource:
    """The source with the factors, and with those of matrices `readers`, which all read the hidden state."""
    if not readers:
        return scaled(source, scalings)
    factors = reader_factors(source, readers)
    of_readers = {name: Scaling(columns=factors) for name in readers}
    return scaled(source, {**scalings, **of_readers}, {smoothing_of(readers[0]): np.reciprocal(factors)})
