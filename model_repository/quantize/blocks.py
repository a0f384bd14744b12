"""Block quantizers: [N, K] float32 -> the operands of ONNX Runtime's MatMulNBits, in the `Layout` of a kernel.

8 bits: symmetric, the block's largest magnitude to 127. 4 bits: the scale is searched: the range is shrunk step by
step, each time followed by the scale that is best for the codes found (least squares), and what gives the least error,
weighted by how much each input channel carries, is kept. Scales are numbers of the 16-bit type that a graph stores or a
kernel keeps: with bfloat16 that adds 0.01 % to the error at 4 bits, 0.2 % at 8.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from model_repository.processors import processors

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]

BF16 = np.dtype(ml_dtypes.bfloat16)

BLOCK = 128
"""Elements per scale on a CPU: what the published int8 has; 4.28 bits per weight at 4 bits."""

_SHRINK = (1.0, 0.9, 0.8)
"""More steps gain 0.3 % of the error."""

_CHUNK_ELEMENTS = 1 << 19
"""Of a matrix at a time on a core, so that the passes over it stay in its cache."""


@dataclass(frozen=True)
class Layout:
    """What a kernel takes: `size` elements of a row to a scale, which is a number of `scale_type`. `zero_points`: at 4
    bits each block has one; else it is 8, the middle.
    """

    size: int = BLOCK
    scale_type: npt.DTypeLike = BF16
    zero_points: bool = True


CPU_LAYOUT = Layout()


@dataclass(frozen=True)
class Blocks:
    """`codes` [N, K / size, size * bits / 8], `scales` [N, K / size] float32 (16-bit numbers), `zeros`
    [N, ceil(K / size / 2)] at 4 bits with zero points, else None. w = scale * (code - zero), zero being 128 at 8 bits
    and 8 at 4 bits without zero points; 4-bit numbers lie low half first. K is rounded up to whole blocks.
    """

    codes: Bytes
    scales: Float32
    zeros: Bytes | None


@dataclass(frozen=True)
class TensorError:
    """What rounding did to a tensor: its `largest` and `mean` error, and the root mean square `relative` to its own."""

    bits: int
    largest: float
    mean: float
    relative: float


@dataclass(frozen=True)
class _Rounded:
    """A chunk [n, blocks, size] of codes with scales and zeros [n, blocks]."""

    codes: Bytes
    scales: Float32
    zeros: Float32

    def values(self) -> Float32:
        values: Float32 = (self.codes - self.zeros[..., None]) * self.scales[..., None]
        return values


def quantize(
    weight: Float32, bits: int, importance: Float32 | None = None, layout: Layout = CPU_LAYOUT
) -> tuple[Blocks, TensorError]:
    """weight [N, K] in blocks of `bits` (4 or 8), and the error of that.

    importance: [K], mean square of what each column is multiplied with. Uses all cores.
    """
    rows, columns = weight.shape
    blocks = -(-columns // layout.size)
    codes = np.empty((rows, blocks, layout.size * bits // 8), np.uint8)
    scales = np.empty((rows, blocks), np.float32)
    zeros = np.empty((rows, -(-blocks // 2)), np.uint8) if bits == 4 and layout.zero_points else None
    carried = None if importance is None else _blocked(importance[None], layout.size)[0]

    def work(chunk: slice) -> Float64:
        part = _blocked(weight[chunk], layout.size)
        rounded = symmetric(part, layout.scale_type) if bits == 8 else searched(part, carried, layout)
        codes[chunk] = rounded.codes if bits == 8 else _nibbles(rounded.codes)
        scales[chunk] = rounded.scales
        if zeros is not None:
            zeros[chunk] = _nibbles(rounded.zeros.astype(np.uint8))
        return error_sums(part, rounded.values())

    size = max(1, _CHUNK_ELEMENTS // (blocks * layout.size))
    with ThreadPoolExecutor(processors()) as pool:
        sums = np.stack(list(pool.map(work, [slice(start, start + size) for start in range(0, rows, size)])))
    return Blocks(codes, scales, zeros), error_of(bits, sums, weight.size)


def rounded_error(weight: Float32, values: npt.NDArray[Any], bits: int) -> TensorError:
    """What keeping `weight` as `values` did to it."""
    return error_of(bits, error_sums(weight, values)[None], weight.size)


def symmetric(part: Float32, scale_type: npt.DTypeLike = BF16) -> _Rounded:
    """[n, blocks, size] to 8 bits around 128."""
    scales = _rounded_scales(np.abs(part).max(-1) / np.float32(127), scale_type)
    scales = np.where(scales > 0, scales, np.float32(1))
    codes = np.rint(part / scales[..., None]) + np.float32(128)
    return _Rounded(codes.astype(np.uint8), scales, np.full(scales.shape, 128, np.float32))


def plain(part: Float32) -> _Rounded:
    """[n, blocks, size] to 4 bits from least to largest, nothing searched."""
    scales, zeros = _spread(*_range(part), CPU_LAYOUT)
    return _Rounded(_codes(part, scales, zeros).astype(np.uint8), scales, zeros)


def searched(part: Float32, importance: Float32 | None, layout: Layout = CPU_LAYOUT) -> _Rounded:
    """[n, blocks, size] to 4 bits with the least error among the candidates; `importance` [blocks, size]."""
    low, high = _range(part)
    best_scales, best_zeros = _spread(low, high, layout)
    best = np.full(low.shape, np.inf, np.float32)
    weighted = part if importance is None else part * importance

    def consider(scales: Float32, zeros: Float32, along: Float32, square: Float32) -> None:
        # Of the error only this depends on scale and codes.
        error = scales * (scales * square - 2 * along)
        better = error < best
        np.copyto(best, error, where=better)
        np.copyto(best_scales, scales, where=better)
        np.copyto(best_zeros, zeros, where=better)

    for shrink in _SHRINK:
        scales, zeros = _spread(low * np.float32(shrink), high * np.float32(shrink), layout)
        for _ in range(2):
            steps = _codes(part, scales, zeros)
            steps -= zeros[..., None]
            along = np.einsum("nbk,nbk->nb", weighted, steps)
            square = np.einsum("nbk,nbk->nb", steps if importance is None else steps * importance, steps)
            consider(scales, zeros, along, square)
            fitting = _rounded_scales(along / np.maximum(square, 1e-30), layout.scale_type)
            scales = np.where((square > 0) & (fitting > 0), fitting, scales)
            consider(scales, zeros, along, square)
    return _Rounded(_codes(part, best_scales, best_zeros).astype(np.uint8), best_scales, best_zeros)


def _rounded_scales(scales: Float32, scale_type: npt.DTypeLike) -> Float32:
    """To the nearest finite numbers of the type."""
    largest = np.float32(ml_dtypes.finfo(scale_type).max)  # type: ignore[no-untyped-call]
    return np.minimum(scales, largest).astype(scale_type).astype(np.float32)


def _range(part: Float32) -> tuple[Float32, Float32]:
    """Least and largest number of each block, 0 included."""
    return np.minimum(part.min(-1), 0), np.maximum(part.max(-1), 0)


def _spread(low: Float32, high: Float32, layout: Layout) -> tuple[Float32, Float32]:
    """Scale and zero point that spread 0..15 from `low` to `high`."""
    width: Float32 = high - low if layout.zero_points else 2 * np.maximum(high, -low)
    step = _rounded_scales(width / np.float32(15), layout.scale_type)
    scales: Float32 = np.where(step > 0, step, 1).astype(np.float32)
    if not layout.zero_points:
        return scales, np.full_like(scales, 8)
    # A scale below the smallest numbers of its type was rounded, and the zero point may be far away.
    zeros: Float32 = np.rint(-low / scales).clip(0, 15)
    return scales, zeros


def _codes(part: Float32, scales: Float32, zeros: Float32) -> Float32:
    codes: Float32 = part / scales[..., None]
    np.rint(codes, out=codes)
    codes += zeros[..., None]
    np.clip(codes, 0, 15, out=codes)
    return codes


def error_of(bits: int, sums: Float64, size: int) -> TensorError:
    """From `error_sums` of all chunks [n, 4]."""
    relative = np.sqrt(sums[:, 2].sum() / max(sums[:, 3].sum(), 1e-30))
    return TensorError(bits, float(sums[:, 0].max()), float(sums[:, 1].sum() / size), float(relative))


def error_sums(weight: Float32, values: npt.NDArray[Any]) -> Float64:
    """Largest magnitude, sum of magnitudes and of squares of the error, sum of squares of the weight."""
    error = values.astype(np.float32, copy=False) - weight
    squares = [float(np.vdot(part, part)) for part in (error, weight)]
    np.abs(error, out=error)
    return np.array([error.max(initial=0), error.sum(dtype=np.float64), *squares])


def _blocked(weight: Float32, size: int) -> Float32:
    """[N, K] -> [N, blocks, size], padded with zeros."""
    rows, columns = weight.shape
    if columns % size:
        weight = np.pad(weight, ((0, 0), (0, -columns % size)))
    return weight.reshape(rows, -1, size)


def _nibbles(numbers: Bytes) -> Bytes:
    """Pairs of 4-bit numbers along the last axis into bytes, low half first."""
    if numbers.shape[-1] % 2:
        numbers = np.concatenate([numbers, np.zeros((*numbers.shape[:-1], 1), np.uint8)], axis=-1)
    packed: Bytes = numbers[..., ::2] | (numbers[..., 1::2] << np.uint8(4))
    return packed
