"""Per-channel smoothing scales (AWQ): search those that minimise a matrix's quantization error, and apply them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product

import numpy as np

from model_repository.checkpoint.weights.tensors import Tensor, TensorSource
from model_repository.processors import processors
from model_repository.quantize.blocks import BLOCK, Float32, plain, searched, symmetric

_CARRIED = (0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0)
_WEIGHTS = (0.0, 0.25, 0.5, 0.625, 0.75, 0.875, 1.0)
"""Exponents of what a channel carries, and of one over the size of its weights, whose products are tried as factors."""

_FINALISTS = 6
"""How many of them, the best by plain rounding, are rounded as the matrix will be."""

_LARGEST_FACTOR = 64.0
_PEAK = 1.5
"""Largest magnitude in a block of activations over the root mean square of its strongest channel, for their own
rounding to 8 bits: a block is scaled anew at every column."""


def search_smoothing_scales(
    sample: Float32,
    power: Float32,
    bits: int,
    besides: Callable[[Float32, Float32], float] = lambda _weight, _factors: 0.0,
) -> Float32:
    """Factors [K] of the columns of a matrix with the least quantization error on a sample of its rows [n, K].

    The preceding layer divides by them. Candidates are powers of two sizes of a column: `power` [K], the mean square of
    the activations it is multiplied with, and the mean square of its weights. `bits` of the matrix: 4 or 8. `besides`:
    a further error, a function of the sample and the factors.
    """
    carried, weight = np.sqrt(power), np.sqrt(np.square(sample).mean(axis=0)) + np.float32(1e-12)
    candidates = [_bounded(carried**up / weight**down) for up, down in product(_CARRIED, _WEIGHTS)]

    def best(candidates: Sequence[Float32], final: bool) -> list[Float32]:
        def error(factors: Float32) -> float:
            return _error(sample * factors, power / factors**2, bits, final) + besides(sample, factors)

        with ThreadPoolExecutor(processors()) as pool:
            errors = list(pool.map(error, candidates))
        return [candidates[place] for place in np.argsort(errors, kind="stable")]

    return best(best(candidates, final=False)[:_FINALISTS], final=True)[0]


def _error(weight: Float32, power: Float32, bits: int, final: bool) -> float:
    """Of products with rounded `weight` [n, K], whose columns meet activations of `power`, rounded too.

    `final`: rounded with everything that is done to a whole matrix.
    """
    columns = weight.shape[1]
    padded = np.pad(weight, ((0, 0), (0, -columns % BLOCK))).reshape(len(weight), -1, BLOCK)
    powers = np.pad(power, (0, -columns % BLOCK)).reshape(-1, BLOCK)
    rounded = symmetric(padded) if bits == 8 else searched(padded, powers) if final else plain(padded)
    of_weight = np.square(rounded.values() - padded).mean(axis=0) * powers
    step = powers.max(axis=-1, keepdims=True) * (_PEAK / 127) ** 2 / 12
    of_activations = np.square(padded).mean(axis=0) * step
    return float(of_weight.sum() + of_activations.sum())


def _bounded(factors: Float32) -> Float32:
    """Around 1, and not further from it than the largest factor."""
    centred = factors / np.exp(np.log(factors).mean())
    bounded: Float32 = centred.clip(1 / _LARGEST_FACTOR, _LARGEST_FACTOR).astype(np.float32)
    return bounded


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
