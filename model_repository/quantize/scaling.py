"""Tensors of a checkpoint whose rows and columns are multiplied by factors: what smoothing makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from model_repository.checkpoint.weights.tensors import Tensor, TensorSource
from model_repository.quantize.blocks import Float32


@dataclass(frozen=True, eq=False)
class Scaling:
    """Factors of a tensor [N, ..., K]: `rows` [N] and `columns` [K]. None: not multiplied."""

    rows: Float32 | None = None
    columns: Float32 | None = None


def scaled(
    source: TensorSource, scalings: Mapping[str, Scaling], added: Mapping[str, Float32] | None = None
) -> TensorSource:
    """The source with factors in some of its tensors, and with `added` ones beside them."""

    def tensor(name: str) -> Tensor:
        scaling = scalings.get(name, Scaling())

        def read(rows: slice | None) -> Float32:
            tensor = source.read(name, rows)
            if scaling.rows is not None:
                tensor *= scaling.rows[rows or slice(None)].reshape(-1, *[1] * (tensor.ndim - 1))
            if scaling.columns is not None:
                tensor *= scaling.columns
            return tensor

        return Tensor(source.shape(name), read)

    def vector(array: Float32) -> Tensor:
        return Tensor(array.shape, lambda rows: array[rows or slice(None)].copy())

    tensors = {name: tensor(name) for name in source.names()}
    tensors |= {name: vector(array) for name, array in (added or {}).items()}
    return TensorSource(source.path, tensors)


def floored(power: Float32) -> Float32:
    """Mean squares of channels [K], those near 0 raised to a millionth of the mean, so that they can be divided by."""
    least = max(float(power.mean()) * 1e-6, 1e-20)
    result: Float32 = np.maximum(power, least).astype(np.float32)
    return result
