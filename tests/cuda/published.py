"""Graphs of the published widths, with zeros for weights: `ledger.py` counts what a GPU would be given to do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from loadtest.bench.models.sizes import shapes_only
from model_repository.checkpoint.geometry import Geometry
from model_repository.checkpoint.layout import lm_shapes, mimi_shapes
from model_repository.depformer import graph as depformer
from model_repository.graph.attention import CacheScales
from model_repository.graph.builder import Graph
from model_repository.mimi_decoder import graph as mimi_decoder
from model_repository.mimi_encoder import graph as mimi_encoder
from model_repository.quantize.config import QuantizationConfig
from model_repository.temporal import graph as temporal
from model_repository.variants import Variant

LAYERS = 32

CONTEXT = 200
"""Shorter than published: a kernel is chosen by widths, heads and rows, and less is allocated."""


NAMES = ("temporal-1", "temporal-2", "depformer", "mimi_encoder", "mimi_decoder")
"""Of the graphs: the temporal model with one and with two layers, and the others."""


def write(folder: Path, recipe: Variant) -> None:
    """Write the graphs `NAMES` with empty weights."""
    published = Geometry.from_config({})
    lm, mimi = published.lm, shapes_only(mimi_shapes(published.mimi))
    for layers in (1, 2):
        small = replace(lm, temporal=replace(lm.temporal, num_layers=layers, context=CONTEXT))
        caches = [CacheScales(recipe.cache)] * layers
        source, quantization = shapes_only(lm_shapes(small)), QuantizationConfig(recipe.temporal)
        graph = temporal.build(small, source, quantization, caches, recipe.device, recipe.activations)
        save(graph, folder / f"temporal-{layers}" / "1")
    graph = depformer.build(
        lm, shapes_only(lm_shapes(lm)), QuantizationConfig(recipe.depformer), recipe.device, recipe.activations
    )
    save(graph, folder / "depformer" / "1")
    save(mimi_encoder.build(published.mimi, mimi), folder / "mimi_encoder" / "1")
    save(mimi_decoder.build(published.mimi, mimi), folder / "mimi_decoder" / "1")


def save(graph: Graph, folder: Path) -> None:
    """As `Graph.save`, with zeros that take no room."""
    folder.mkdir(parents=True, exist_ok=True)
    at = 0
    for group in graph._groups.values():
        for value in group.values:
            declared = value.const_value
            value.const_value = ir.ExternalTensor(
                "model.onnx.data", at, declared.nbytes, declared.dtype, shape=declared.shape, name=value.name
            )
            at += -(-int(declared.nbytes) // 4096) * 4096
    with (folder / "model.onnx.data").open("wb") as file:
        file.truncate(at)
    functions = list(graph._functions.values())
    ir.save(ir.Model(graph._graph, ir_version=11, functions=functions), folder / "model.onnx")
