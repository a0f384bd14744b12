"""Compute the size of each variant of the published model: `make sizes`. Uses shapes only; nothing is built.

Weights are those of the graphs that a build would write. `loaded` is their size in memory: on a CPU 16-bit matrices
are converted to float32. A slot holds the keys and values of a full context and the codec's state. The last columns are
the slots that fit a GPU by the estimate that loading checks: weights and a tenth of them, a GiB for each of the four
processes, and the prefix cache, which takes as much as a slot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table

from gateway.cli.console import result_console
from model_repository.checkpoint.geometry import Geometry
from model_repository.checkpoint.layout import lm_shapes, mimi_shapes
from model_repository.checkpoint.weights.tensors import Float32, Shape, Tensor, TensorSource
from model_repository.depformer import graph as depformer
from model_repository.graph.attention import CacheScales
from model_repository.graph.builder import Graph
from model_repository.mimi_decoder import graph as mimi_decoder
from model_repository.mimi_encoder import graph as mimi_encoder
from model_repository.quantize.config import QuantizationConfig
from model_repository.serving.memory import DEVICE_WORKSPACE_BYTES, GIB, WORKSPACE_SHARE, MemoryEstimate
from model_repository.temporal import graph as temporal
from model_repository.variants import CUDA_VARIANTS, VARIANTS, CachePrecision, Device, Variant


def shapes_only(shapes: Mapping[str, Shape]) -> TensorSource:
    """Tensors that have a shape but no values. Building a graph, without writing it, needs none."""

    def refuse(rows: slice | None) -> Float32:
        raise NotImplementedError

    return TensorSource(Path(), {name: Tensor(shape, refuse) for name, shape in shapes.items()})


@dataclass(frozen=True)
class Sizes:
    """Bytes: of a variant's weights by model, of all weights in memory, and of one slot."""

    weights: Mapping[str, int]
    loaded: int
    slot: int


def graphs(variant: Variant, geometry: Geometry) -> Mapping[str, Graph]:
    """The graphs of `variant` without weights, by model, with its precision of keys and values."""
    lm, mimi = shapes_only(lm_shapes(geometry.lm)), shapes_only(mimi_shapes(geometry.mimi))
    caches = [CacheScales(variant.cache)] * geometry.lm.temporal.num_layers
    return {
        "mimi_encoder": mimi_encoder.build(geometry.mimi, mimi),
        "temporal": temporal.build(
            geometry.lm, lm, QuantizationConfig(variant.temporal), caches, variant.device, variant.activations
        ),
        "depformer": depformer.build(
            geometry.lm, lm, QuantizationConfig(variant.depformer), variant.device, variant.activations
        ),
        "mimi_decoder": mimi_decoder.build(geometry.mimi, mimi),
    }


def sizes(variant: Variant, geometry: Geometry) -> Sizes:
    """Compute the sizes of `variant`."""
    parts = graphs(variant, geometry)
    return Sizes(
        weights={name: graph.weight_bytes for name, graph in parts.items()},
        loaded=sum(
            graph.loaded_bytes if variant.device is Device.CPU else graph.weight_bytes for graph in parts.values()
        ),
        slot=sum(graph.slot_bytes for graph in parts.values()),
    )


GPUS = {"24 GB": 22 * GIB, "80 GB": 79 * GIB, "141 GB": 139 * GIB}
"""Bytes that are there to allocate, for A10 and L4, A100 and H100, H200."""


def slots_on_gpu(found: Sizes, memory: int) -> int:
    """Compute how many slots fit, at least 0."""
    workspace = len(found.weights) * DEVICE_WORKSPACE_BYTES + round(WORKSPACE_SHARE * found.loaded) + found.slot
    return max(0, MemoryEstimate(found.loaded, found.slot, workspace).fitting(memory))


def main() -> None:
    geometry = Geometry.from_config({})
    columns = ("device", "variant", "KV", "temporal", "depformer", "codec", "on disk", "loaded", "a slot")
    table = Table(*columns, *(f"slots, {name}" for name in GPUS), title="GB; slots computed, not measured")
    int8_kv = [replace(variant, cache=CachePrecision.INT8) for variant in CUDA_VARIANTS.values()]
    for variant in (*VARIANTS.values(), *CUDA_VARIANTS.values(), *int8_kv):
        found = sizes(variant, geometry)
        codec = found.weights["mimi_encoder"] + found.weights["mimi_decoder"]
        row = (
            found.weights["temporal"],
            found.weights["depformer"],
            codec,
            sum(found.weights.values()),
            found.loaded,
            found.slot,
        )
        slots = [str(slots_on_gpu(found, memory)) if variant.device is Device.CUDA else "" for memory in GPUS.values()]
        table.add_row(variant.device, variant.name, variant.cache, *(f"{value / 1e9:.2f}" for value in row), *slots)
    result_console().print(table)


if __name__ == "__main__":
    main()
