"""The depth transformer's tensors, rescaled as `folding` does it, without calibration.

Its steps share their norms, and a step attends to values of those before it: so factors of what comes out of a norm,
and of values, are those of a layer, and only gated channels have their own in each step. What a matrix is multiplied
with is taken from the weights before it: a norm's output has the power of its scale.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model_repository.checkpoint.geometry import AGENT_CODEBOOKS, LmGeometry
from model_repository.checkpoint.tensors import DerivedTensors, TensorSource
from model_repository.quantize.blocks import Float32
from model_repository.quantize.factors import column_factors

_BITS = 8
_SAMPLE_ROWS = 24
"""Of each step's matrix."""

_LAYER = re.compile(r"(depformer\.layers\.\d+)\.(norm1|norm2|self_attn|gating\.(\d+))\.(.+)")


@dataclass(frozen=True)
class _Layer:
    """attention_in, gating_in, values: [dim]; gated: [hidden] of each step. See `folding`."""

    attention_in: Float32
    gating_in: Float32
    values: Float32
    gated: tuple[Float32, ...]


class FoldedDepthTensors(DerivedTensors):
    """A checkpoint's tensors with the factors in those of the depth transformer."""

    def __init__(self, source: TensorSource, lm: LmGeometry) -> None:
        super().__init__(source)
        self._dim = lm.depformer.dim
        self._layers: dict[str, _Layer] = {}

    def read(self, name: str, rows: slice | None = None) -> Float32:
        """As `TensorSource.read`."""
        stored = self._source.read(name, rows)
        match = _LAYER.fullmatch(name)
        if match is None or (match[3] is not None and int(match[3]) >= AGENT_CODEBOOKS):
            return stored
        which = np.arange(self._source.shape(name)[0])[rows or slice(None)]
        folded: Float32 = stored * self._factors(match, which)
        return folded

    def _factors(self, match: re.Match[str], rows: npt.NDArray[np.int64]) -> Float32:
        """What the given rows of the matched tensor are multiplied by."""
        layer = self._layer(match[1])
        if match[2] == "norm1":
            return np.reciprocal(layer.attention_in)
        if match[2] == "norm2":
            return np.reciprocal(layer.gating_in)
        if match[4] == "in_proj_weight":
            ones = np.ones(2 * self._dim, np.float32)
            return _outer(np.concatenate([ones, 1 / layer.values]), rows % (3 * self._dim), layer.attention_in)
        if match[4] == "out_proj.weight":
            return layer.values
        gated = layer.gated[int(match[3])]
        if match[4] == "linear_out.weight":
            return gated
        return _outer(np.concatenate([np.ones_like(gated), 1 / gated]), rows, layer.gating_in)

    def _layer(self, name: str) -> _Layer:
        if name not in self._layers:
            self._layers[name] = self._find(name)
        return self._layers[name]

    def _find(self, name: str) -> _Layer:
        read, dim = self._source.read, self._dim
        steps = range(AGENT_CODEBOOKS)
        power = np.square(read(f"{name}.norm1.alpha").reshape(-1))
        projections = [
            read(f"{name}.self_attn.in_proj_weight", slice(3 * dim * step, 3 * dim * (step + 1))) for step in steps
        ]
        values = np.mean([np.square(projection[2 * dim :]) @ power for projection in projections], axis=0)
        out = [
            read(f"{name}.self_attn.out_proj.weight", slice(dim * step, dim * step + _SAMPLE_ROWS)) for step in steps
        ]

        gating_power = np.square(read(f"{name}.norm2.alpha").reshape(-1))
        inputs = [read(f"{name}.gating.{step}.linear_in.weight") for step in steps]
        gated = []
        for step, matrix in zip(steps, inputs, strict=True):
            gate, up = np.split(np.square(matrix) @ gating_power, 2)
            sample = read(f"{name}.gating.{step}.linear_out.weight", slice(AGENT_CODEBOOKS * _SAMPLE_ROWS))
            gated.append(column_factors(sample, _above_nothing(gate * up), _BITS))
        return _Layer(
            attention_in=column_factors(_sample(projections), _above_nothing(power), _BITS),
            gating_in=column_factors(_sample(inputs), _above_nothing(gating_power), _BITS),
            values=column_factors(np.concatenate(out), _above_nothing(values), _BITS),
            gated=tuple(gated),
        )


def _outer(by_row: Float32, rows: npt.NDArray[np.int64], by_column: Float32) -> Float32:
    factors: Float32 = by_row[rows, None] * by_column
    return factors


def _sample(matrices: list[Float32]) -> Float32:
    """Some rows of each, spread over it."""
    return np.concatenate([matrix[:: max(1, len(matrix) // _SAMPLE_ROWS)] for matrix in matrices])


def _above_nothing(power: Float32) -> Float32:
    floored: Float32 = np.maximum(power, max(float(power.mean()) * 1e-6, 1e-20)).astype(np.float32)
    return floored
