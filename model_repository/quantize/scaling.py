"""Tensors of a checkpoint whose rows and columns are multiplied by factors: what smoothing makes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from model_repository.checkpoint.weights.tensors import DerivedTensors, Shape, TensorSource
from model_repository.quantize.blocks import Float32


@dataclass(frozen=True, eq=False)
class Scaling:
    """Factors of a tensor [N, ..., K]: `rows` [N] and `columns` [K]. None: not multiplied."""

    rows: Float32 | None = None
    columns: Float32 | None = None


class ScaledTensors(DerivedTensors):
    """A source with factors in some of its tensors, and with `added` ones beside them."""

    def __init__(
        self, source: TensorSource, scalings: Mapping[str, Scaling], added: Mapping[str, Float32] | None = None
    ) -> None:
        super().__init__(source)
        self._scalings = scalings
        self._added = added or {}

    def names(self) -> Iterable[str]:
        """The source's tensors, then the added ones."""
        return [*self._source.names(), *self._added]

    def __contains__(self, name: object) -> bool:
        return name in self._added or name in self._source

    def shape(self, name: str) -> Shape:
        """As `TensorSource.shape`."""
        return self._added[name].shape if name in self._added else self._source.shape(name)

    def read(self, name: str, rows: slice | None = None) -> Float32:
        """As `TensorSource.read`."""
        if name in self._added:
            return self._added[name][rows or slice(None)].copy()
        tensor, scaling = self._source.read(name, rows), self._scalings.get(name, Scaling())
        if scaling.rows is not None:
            tensor *= scaling.rows[rows or slice(None)].reshape(-1, *[1] * (tensor.ndim - 1))
        if scaling.columns is not None:
            tensor *= scaling.columns
        return tensor


def floored(power: Float32) -> Float32:
    """Mean squares of channels [K], those near 0 raised to a millionth of the mean, so that they can be divided by."""
    least = max(float(power.mean()) * 1e-6, 1e-20)
    result: Float32 = np.maximum(power, least).astype(np.float32)
    return result
