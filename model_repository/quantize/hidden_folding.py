"""Matrices that read the hidden state, rescaled as `folding` does it.

The hidden state leaves the temporal model as the reference has it, so the norm before it cannot take the factors back:
the graph multiplies by their reciprocals in front of the matrix, a vector beside a matrix.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np

from model_repository.checkpoint.tensors import DerivedTensors, Shape, TensorSource
from model_repository.quantize.blocks import Float32
from model_repository.quantize.factors import column_factors
from model_repository.quantize.plan import smoothing_of

_BITS = 8
_SAMPLE_ROWS = 192
"""Of all matrices together."""


class FoldedReaders(DerivedTensors):
    """A checkpoint's tensors with the columns of `matrices`, which read the same, rescaled by the same factors.

    There is one tensor more, `smoothing_of` the first matrix: what the hidden state is multiplied by, [dim]. A norm's
    output has the power of its scale, so no calibration is needed.
    """

    def __init__(self, source: TensorSource, matrices: Sequence[str]) -> None:
        super().__init__(source)
        self._matrices = matrices
        self._added = smoothing_of(matrices[0])

    def names(self) -> Iterable[str]:
        return [*self._source.names(), self._added]

    def __contains__(self, name: object) -> bool:
        return name == self._added or name in self._source

    def shape(self, name: str) -> Shape:
        return self._source.shape(self._matrices[0])[1:] if name == self._added else self._source.shape(name)

    def read(self, name: str, rows: slice | None = None) -> Float32:
        """As `TensorSource.read`."""
        if name == self._added:
            return np.reciprocal(self._factors)[rows or slice(None)]
        stored = self._source.read(name, rows)
        return stored * self._factors if name in self._matrices else stored

    @cached_property
    def _factors(self) -> Float32:
        samples = []
        for name in self._matrices:
            total = self._source.shape(name)[0]
            wanted = min(_SAMPLE_ROWS // len(self._matrices), total)
            middle = (total - wanted) // 2
            samples.append(self._source.read(name, slice(middle, middle + wanted)))
        power = np.square(self._source.read("out_norm.alpha").reshape(-1))
        floored: Float32 = np.maximum(power, max(float(power.mean()) * 1e-6, 1e-20)).astype(np.float32)
        return column_factors(np.concatenate(samples), floored, _BITS)
