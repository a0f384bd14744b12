"""The four graphs of a checkpoint in a variant."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from model_repository.checkpoint.folder import Checkpoint
from model_repository.checkpoint.geometry import AGENT_CODEBOOKS
from model_repository.checkpoint.tensors import TensorSource
from model_repository.depformer import graph as depformer
from model_repository.graph.attention import CacheScales
from model_repository.graph.builder import Graph
from model_repository.mimi_decoder import graph as mimi_decoder
from model_repository.mimi_encoder import graph as mimi_encoder
from model_repository.quantize.calibration import calibrate
from model_repository.quantize.depth_folding import FoldedDepthTensors
from model_repository.quantize.folding import FoldedTensors
from model_repository.quantize.hidden_folding import FoldedReaders
from model_repository.quantize.plan import Plan
from model_repository.temporal import graph as temporal
from model_repository.variants import CachePrecision, Precision, Variant

HEADROOM = 2.0
"""How much further than in calibration keys and values may reach before int8 cuts them off."""


def graphs_of(
    source: Checkpoint, variant: Variant, report: Callable[[float], None] = lambda done: None
) -> tuple[Mapping[str, Graph], Mapping[str, Plan]]:
    """Graphs by model, and for those that are rounded the plans whose `errors` saving them fills.

    `report` is told how much of the calibration is done, which some variants need.
    """
    geometry = source.geometry
    plans = {"temporal": Plan(variant.temporal), "depformer": Plan(variant.depformer)}
    tensors: TensorSource = source.lm
    caches = [CacheScales(variant.cache)] * geometry.lm.temporal.num_layers
    if variant.calibrated or variant.cache is CachePrecision.INT8:
        statistics = calibrate(source, report)
        bits = 4 if variant.temporal is Precision.INT4 else 8
        folded = FoldedTensors(source.lm, geometry.lm.temporal, statistics, bits)
        tensors = FoldedReaders(folded, ["text_linear.weight"]) if variant.calibrated else folded
        plans["temporal"].importance = folded.importance
        caches = _scales(variant.cache, folded)
    depth: TensorSource = source.lm
    if variant.depformer is Precision.INT8:
        entries = [f"depformer_in.{step}.weight" for step in range(AGENT_CODEBOOKS)]
        depth = FoldedReaders(FoldedDepthTensors(source.lm, geometry.lm), entries)
    graphs = {
        "mimi_encoder": mimi_encoder.build(geometry.mimi, source.mimi),
        "temporal": temporal.build(
            geometry.lm, tensors, plans["temporal"], caches, variant.device, variant.activations
        ),
        "depformer": depformer.build(geometry.lm, depth, plans["depformer"], variant.device, variant.activations),
        "mimi_decoder": mimi_decoder.build(geometry.mimi, source.mimi),
    }
    return graphs, plans


def _scales(precision: CachePrecision, folded: FoldedTensors) -> list[CacheScales]:
    return [
        CacheScales(precision, HEADROOM * key_peak / 127, HEADROOM * value_peak / 127)
        for key_peak, value_peak in folded.peaks()
    ]
