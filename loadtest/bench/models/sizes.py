"""Compute the size of each variant of the published model: `make sizes`. Uses shapes only; nothing is built.

Weights are those of the graphs that a build would write. `loaded` is their size in memory: on a CPU 16-bit matrices
are converted to float32. A slot holds the keys and values of a full context and the codec's state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from model_repository.checkpoint.geometry import Geometry
from model_repository.checkpoint.layout import lm_shapes, mimi_shapes
from model_repository.checkpoint.tensors import Float32, Shape
from model_repository.depformer import graph as depformer
from model_repository.graph.attention import CacheScales
from model_repository.graph.builder import Graph
from model_repository.mimi_decoder import graph as mimi_decoder
from model_repository.mimi_encoder import graph as mimi_encoder
from model_repository.quantize.plan import Plan
from model_repository.temporal import graph as temporal
from model_repository.variants import CUDA_VARIANTS, VARIANTS, Device, Variant


@dataclass(frozen=True)
class ShapesOnly:
    """The shapes of a checkpoint's tensors. Building a graph, without writing it, needs no values."""

    shapes: Mapping[str, Shape]

    def names(self) -> Iterable[str]:
        return self.shapes

    def __contains__(self, name: object) -> bool:
        return name in self.shapes

    def shape(self, name: str) -> Shape:
        return self.shapes[name]

    def read(self, name: str, rows: slice | None = None) -> Float32:
        raise NotImplementedError(name)


@dataclass(frozen=True)
class Sizes:
    """Bytes: of a variant's weights by model, of all weights in memory, and of one slot."""

    weights: Mapping[str, int]
    loaded: int
    slot: int


def sizes(variant: Variant, geometry: Geometry) -> Sizes:
    """Compute the sizes of `variant`, with its precision of keys and values."""
    lm, mimi = ShapesOnly(lm_shapes(geometry.lm)), ShapesOnly(mimi_shapes(geometry.mimi))
    caches = [CacheScales(variant.cache)] * geometry.lm.temporal.num_layers
    parts: dict[str, Graph] = {
        "mimi_encoder": mimi_encoder.build(geometry.mimi, mimi),
        "temporal": temporal.build(
            geometry.lm, lm, Plan(variant.temporal), caches, variant.device, variant.activations
        ),
        "depformer": depformer.build(geometry.lm, lm, Plan(variant.depformer), variant.device, variant.activations),
        "mimi_decoder": mimi_decoder.build(geometry.mimi, mimi),
    }
    return Sizes(
        weights={name: graph.weight_bytes for name, graph in parts.items()},
        loaded=sum(
            graph.loaded_bytes if variant.device is Device.CPU else graph.weight_bytes for graph in parts.values()
        ),
        slot=sum(graph.slot_bytes for graph in parts.values()),
    )


def main() -> None:
    geometry = Geometry.from_config({})
    table = Table("device", "variant", "temporal", "depformer", "codec", "on disk", "loaded", "a slot", title="GB")
    for variant in (*VARIANTS.values(), *CUDA_VARIANTS.values()):
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
        table.add_row(variant.device, variant.name, *(f"{value / 1e9:.2f}" for value in row))
    Console().print(table)


if __name__ == "__main__":
    main()
