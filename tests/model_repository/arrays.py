"""Tensors of a checkpoint that are arrays in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from model_repository.checkpoint.weights.tensors import Tensor, TensorSource


def tensors_of(arrays: Mapping[str, np.ndarray]) -> TensorSource:
    def tensor(array: np.ndarray) -> Tensor:
        return Tensor(array.shape, lambda rows: array[rows or slice(None)].copy())

    return TensorSource(Path("arrays"), {name: tensor(array) for name, array in arrays.items()})
