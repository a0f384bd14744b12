"""Rescaling that leaves a layer's function as it is and makes its rounding kinder.

A channel between two linear maps can be scaled by any factor in the one if the other takes it back. So
* the columns of `in_proj` and `linear_in` are scaled, and the norm before them takes it back (as AWQ and SmoothQuant
  do, arXiv:2306.00978 and 2211.10438): a channel that carries much is rounded finer, one whose weights stick out no
  longer coarsens its block;
* so are the columns of `linear_out`, and the rows of `linear_in` that make the gated channels take it back;
* so are the columns of `out_proj`, and the values of attention take it back, as far as one int8 scale for all values
  of a layer allows;
* each rotary pair of the keys is scaled to one power, and the queries take it back: they have one scale too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from model_repository.checkpoint.geometry import TransformerGeometry
from model_repository.checkpoint.tensors import DerivedTensors, TensorSource
from model_repository.quantize.blocks import Float32
from model_repository.quantize.calibration import LayerStatistics
from model_repository.quantize.factors import column_factors

_SAMPLE_ROWS = 192
"""Rows of a matrix that its columns' factors are searched on."""


@dataclass(frozen=True)
class _Layer:
    """A layer's factors: what columns or rows are multiplied by.

    columns of in_proj [dim] and linear_in [dim]; `pairs` [dim] divides key rows and multiplies query rows; `values`
    [dim] and `gated` [hidden] divide rows of value and up, and multiply columns of out_proj and linear_out.
    """

    attention_in: Float32
    gating_in: Float32
    pairs: Float32
    values: Float32
    gated: Float32


class FoldedTensors(DerivedTensors):
    """A temporal transformer's tensors with the factors in them; everything else as in the source."""

    def __init__(
        self, source: TensorSource, shape: TransformerGeometry, statistics: Sequence[LayerStatistics], bits: int
    ) -> None:
        super().__init__(source)
        self._shape = shape
        self._statistics = statistics
        self._bits = bits
        self._layers: dict[int, _Layer] = {}
        self._values: dict[int, Float32] = {}

    def read(self, name: str, rows: slice | None = None) -> Float32:
        """As `TensorSource.read`."""
        stored = self._source.read(name, rows)
        index, part = _place(name)
        if index is None or part not in _FOLDS:
            return stored
        layer = self._layer(index)
        return _FOLDS[part](stored, layer, _Rows(rows, self._source.shape(name)[0]))

    def importance(self, name: str) -> Float32 | None:
        """Mean square of what each column of a matrix is multiplied with; None where that is not known."""
        index, part = _place(name)
        if index is None or part not in _FOLDS:
            return None
        layer, statistics = self._layer(index), self._statistics[index]
        powers = {
            "self_attn.in_proj_weight": statistics.attention_in / layer.attention_in**2,
            "self_attn.out_proj.weight": statistics.attended / layer.values**2,
            "gating.linear_in.weight": statistics.gating_in / layer.gating_in**2,
            "gating.linear_out.weight": statistics.gated / layer.gated**2,
        }
        return powers.get(part)

    def peaks(self) -> Iterator[tuple[float, float]]:
        """The largest magnitudes that calibration saw, of each layer's keys and of its values."""
        for index, statistics in enumerate(self._statistics):
            values = statistics.value_peaks / self._value_factors(index)
            yield statistics.key_peak, float(values.max())

    def _layer(self, index: int) -> _Layer:
        """A layer's factors, found when first asked for."""
        if index not in self._layers:
            self._layers[index] = self._find(index)
        return self._layers[index]

    def _find(self, index: int) -> _Layer:
        statistics, layer = self._statistics[index], f"transformer.layers.{index}"
        return _Layer(
            attention_in=self._column_factors(f"{layer}.self_attn.in_proj_weight", statistics.attention_in),
            gating_in=self._column_factors(f"{layer}.gating.linear_in.weight", statistics.gating_in),
            pairs=np.repeat(np.sqrt(statistics.key), 2),
            values=self._value_factors(index),
            gated=self._column_factors(f"{layer}.gating.linear_out.weight", statistics.gated),
        )

    def _value_factors(self, index: int) -> Float32:
        """Columns of `out_proj` made even make values uneven, which have one int8 scale: both errors count."""
        if index in self._values:
            return self._values[index]
        statistics = self._statistics[index]

        def of_values(weight: Float32, factors: Float32) -> float:
            step = float((statistics.value_peaks / factors).max()) / 127
            return step**2 / 12 * float(np.square(weight * factors).mean(axis=0).sum())

        name = f"transformer.layers.{index}.self_attn.out_proj.weight"
        factors = self._values[index] = self._column_factors(name, statistics.attended, of_values)
        return factors

    def _column_factors(
        self, name: str, power: Float32, besides: Callable[[Float32, Float32], float] = lambda _weight, _factors: 0.0
    ) -> Float32:
        """See `column_factors`: of a matrix and the mean squares of what it is multiplied with."""
        total = self._source.shape(name)[0]
        wanted = min(_SAMPLE_ROWS, total)
        parts = [slice(start, start + wanted // 3 or 1) for start in (0, total // 3, total - wanted // 3)]
        sample = np.concatenate([self._source.read(name, part) for part in parts])
        return column_factors(sample, power, self._bits, besides)


@dataclass(frozen=True)
class _Rows:
    """Which of a matrix's rows were read."""

    rows: slice | None
    total: int

    @cached_property
    def indices(self) -> slice:
        return self.rows or slice(0, self.total)

    def take(self, factors: Float32) -> Float32:
        """`factors` [total] of those rows, as a column."""
        return factors[self.indices][:, None]


def _in_proj(stored: Float32, layer: _Layer, rows: _Rows) -> Float32:
    by_row = np.concatenate([layer.pairs, 1 / layer.pairs, 1 / layer.values])
    return stored * rows.take(by_row) * layer.attention_in


def _linear_in(stored: Float32, layer: _Layer, rows: _Rows) -> Float32:
    by_row = np.concatenate([np.ones_like(layer.gated), 1 / layer.gated])
    return stored * rows.take(by_row) * layer.gating_in


_FOLDS: dict[str, Callable[[Float32, _Layer, _Rows], Float32]] = {
    "norm1.alpha": lambda stored, layer, _: stored / layer.attention_in,
    "self_attn.in_proj_weight": _in_proj,
    "self_attn.out_proj.weight": lambda stored, layer, _: stored * layer.values,
    "norm2.alpha": lambda stored, layer, _: stored / layer.gating_in,
    "gating.linear_in.weight": _linear_in,
    "gating.linear_out.weight": lambda stored, layer, _: stored * layer.gated,
}


def _place(name: str) -> tuple[int | None, str]:
    """Layer index and the rest of the name; None for what is not in a temporal layer."""
    prefix = "transformer.layers."
    if not name.startswith(prefix):
        return None, name
    index, _, part = name.removeprefix(prefix).partition(".")
    return int(index), part
