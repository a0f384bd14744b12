"""Smoothing of the temporal transformer: factors that keep each layer's function and reduce the error of rounding it.

A channel between two linear maps can be scaled by any factor in the first if the second divides by it. So
* the columns of `in_proj` and `linear_in` are scaled, and the norm before them is divided (as AWQ and SmoothQuant
  do, arXiv:2306.00978 and 2211.10438): a channel that carries much is rounded finer, and a channel with large weights
  no longer makes its block coarser;
* the columns of `linear_out` are scaled, and the rows of `linear_in` that make the gated channels are divided;
* the columns of `out_proj` are scaled, and attention's values are divided, as far as one int8 scale for all values of
  a layer allows;
* each rotary pair of the keys is scaled to one power, and the queries are divided: the keys of a layer have one int8
  scale too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from model_repository.checkpoint.geometry import TransformerGeometry
from model_repository.checkpoint.weights.tensors import TensorSource
from model_repository.quantize.blocks import Float32
from model_repository.quantize.calibration import LayerStatistics
from model_repository.quantize.smoothing_scales import Scaling, search_smoothing_scales

_SAMPLE_ROWS = 192
"""Rows of a matrix on which its columns' factors are searched."""


@dataclass(frozen=True, eq=False)
class TemporalSmoothing:
    """Factors of the temporal transformer's tensors, and what is known of the smoothed layers.

    importance: by matrix, the mean square of what each of its columns is multiplied with. peaks: by layer, the largest
    magnitudes of keys and of values in calibration.
    """

    scalings: Mapping[str, Scaling]
    importance: Mapping[str, Float32]
    peaks: Sequence[tuple[float, float]]


def smooth_temporal(
    source: TensorSource,
    shape: TransformerGeometry,
    statistics: Iterable[LayerStatistics],
    bits: int,
    report: Callable[[float], None] = lambda done: None,
) -> TemporalSmoothing:
    """Find the factors of all layers, for matrices of `bits` (4 or 8). `report` receives the fraction done."""
    scalings: dict[str, Scaling] = {}
    importance: dict[str, Float32] = {}
    peaks = []
    for index, layer in enumerate(statistics):
        prefix = f"transformer.layers.{index}"
        in_proj, out_proj = f"{prefix}.self_attn.in_proj_weight", f"{prefix}.self_attn.out_proj.weight"
        linear_in, linear_out = f"{prefix}.gating.linear_in.weight", f"{prefix}.gating.linear_out.weight"
        attention_in = search_smoothing_scales(_sample(source, in_proj), layer.attention_in, bits)
        gating_in = search_smoothing_scales(_sample(source, linear_in), layer.gating_in, bits)
        gated = search_smoothing_scales(_sample(source, linear_out), layer.gated, bits)
        values = search_smoothing_scales(_sample(source, out_proj), layer.attended, bits, _value_error(layer))
        pairs = np.repeat(np.sqrt(layer.key), 2)
        scalings |= {
            f"{prefix}.norm1.alpha": Scaling(columns=np.reciprocal(attention_in)),
            in_proj: Scaling(np.concatenate([pairs, 1 / pairs, 1 / values]), attention_in),
            out_proj: Scaling(columns=values),
            f"{prefix}.norm2.alpha": Scaling(columns=np.reciprocal(gating_in)),
            linear_in: Scaling(np.concatenate([np.ones_like(gated), 1 / gated]), gating_in),
            linear_out: Scaling(columns=gated),
        }
        importance |= {
            in_proj: layer.attention_in / attention_in**2,
            out_proj: layer.attended / values**2,
            linear_in: layer.gating_in / gating_in**2,
            linear_out: layer.gated / gated**2,
        }
        peaks.append((layer.key_peak, float((layer.value_peaks / values).max())))
        report((index + 1) / shape.num_layers)
    return TemporalSmoothing(scalings, importance, peaks)


def _value_error(layer: LayerStatistics) -> Callable[[Float32, Float32], float]:
    """Error of int8 values: factors that even out the columns of `out_proj` make the values uneven."""

    def error(weight: Float32, factors: Float32) -> float:
        step = float((layer.value_peaks / factors).max()) / 127
        return step**2 / 12 * float(np.square(weight * factors).mean(axis=0).sum())

    return error


def _sample(source: TensorSource, name: str) -> Float32:
    """Rows of a matrix, from its beginning, middle and end."""
    total = source.shape(name)[0]
    wanted = min(_SAMPLE_ROWS, total)
    parts = [slice(start, start + wanted // 3 or 1) for start in (0, total // 3, total - wanted // 3)]
    return np.concatenate([source.read(name, part) for part in parts])
