"""Packs float32 rows into the K-quants of GGML, which the `gguf` package reads but does not write.

Each super-block of 256 values is rounded plainly, sub-block by sub-block; what matters is the layout of the bits, as
llama.cpp's `ggml-quants.c` describes it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType
from gguf.quants import quantize as gguf_quantize

Bytes = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]


def quantize(rows: Float32, kind: GGMLQuantizationType) -> npt.NDArray[np.generic]:
    """Rows [n, width] as blocks of `kind`: uint8 [n, bytes of a row], or floats for the kinds that are floats."""
    pack = {"Q2_K": _q2_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k}.get(kind.name)
    if pack is None:
        return gguf_quantize(rows, kind)
    return pack(rows.reshape(-1, 256)).reshape(*rows.shape[:-1], -1)


def _affine(blocks: Float32, size: int, scale_bits: int, bits: int) -> tuple[Float32, Float32, Bytes, Bytes, Bytes]:
    """value = d · scale · q - dmin · low: d, dmin [n, 1]; scale, low [n, 256 / size]; q [n, 256 / size, size]."""
    parts = blocks.reshape(len(blocks), -1, size)
    low = np.maximum(-parts.min(-1), 0)
    width = (parts.max(-1) + low) / (2**bits - 1)
    top = 2**scale_bits - 1
    d = (width.max(-1, keepdims=True) / top).astype(np.float16).astype(np.float32)
    dmin = (low.max(-1, keepdims=True) / top).astype(np.float16).astype(np.float32)
    scale = np.clip(np.round(width / np.maximum(d, 1e-12)), 0, top)
    lows = np.clip(np.round(low / np.maximum(dmin, 1e-12)), 0, top)
    step = np.maximum(d * scale, 1e-12)[..., None]
    q = np.clip(np.round((parts + (dmin * lows)[..., None]) / step), 0, 2**bits - 1)
    return d, dmin, scale.astype(np.uint8), lows.astype(np.uint8), q.astype(np.uint8)


def _half(values: Float32) -> Bytes:
    return values.astype("<f2").view(np.uint8)


def _six_bit_pairs(scale: Bytes, low: Bytes) -> Bytes:
    """Eight scales and eight lows of 6 bits in 12 bytes."""
    first = scale[:, :4] | (scale[:, 4:] >> 4 << 6)
    second = low[:, :4] | (low[:, 4:] >> 4 << 6)
    third = (scale[:, 4:] & 15) | ((low[:, 4:] & 15) << 4)
    return np.concatenate([first, second, third], axis=1)


def _nibbles(q: Bytes) -> Bytes:
    """[n, 8, 32] values of 4 bits: sub-blocks 2j and 2j + 1 are the low and high halves of 32 bytes."""
    return (q[:, 0::2] | (q[:, 1::2] << 4)).reshape(len(q), 128)


def _q4_k(blocks: Float32) -> Bytes:
    d, dmin, scale, low, q = _affine(blocks, 32, 6, 4)
    return np.concatenate([_half(d), _half(dmin), _six_bit_pairs(scale, low), _nibbles(q)], axis=1)


def _q5_k(blocks: Float32) -> Bytes:
    d, dmin, scale, low, q = _affine(blocks, 32, 6, 5)
    high = np.bitwise_or.reduce((q >> 4) << np.arange(8, dtype=np.uint8)[None, :, None], axis=1)
    return np.concatenate([_half(d), _half(dmin), _six_bit_pairs(scale, low), high, _nibbles(q & 15)], axis=1)


def _q2_k(blocks: Float32) -> Bytes:
    d, dmin, scale, low, q = _affine(blocks, 16, 4, 2)
    # Halves of 128 values; in each, four runs of 32 share 32 bytes, two bits each.
    runs = q.reshape(len(q), 2, 4, 32) << np.array([0, 2, 4, 6], np.uint8)[None, None, :, None]
    packed = np.bitwise_or.reduce(runs, axis=2).reshape(len(q), 64)
    return np.concatenate([scale | (low << 4), packed, _half(d), _half(dmin)], axis=1)


def _q6_k(blocks: Float32) -> Bytes:
    parts = blocks.reshape(len(blocks), 16, 16)
    width = np.abs(parts).max(-1) / 31
    d = (width.max(-1, keepdims=True) / 127).astype(np.float16).astype(np.float32)
    scale = np.round(width / np.maximum(d, 1e-12))
    q = np.clip(np.round(parts / np.maximum(d * scale, 1e-12)[..., None]), -32, 31) + 32
    runs = q.astype(np.uint8).reshape(len(blocks), 2, 4, 32)
    # Runs 0 and 2 of a half share 32 bytes of nibbles, runs 1 and 3 the next; the upper two bits of all four share 32.
    low = (runs[:, :, :2] & 15) | ((runs[:, :, 2:] & 15) << 4)
    high = np.bitwise_or.reduce((runs >> 4) << np.array([0, 2, 4, 6], np.uint8)[None, None, :, None], axis=2)
    count = len(blocks)
    return np.concatenate(
        [low.reshape(count, 128), high.reshape(count, 64), scale.astype(np.int8).view(np.uint8), _half(d)], axis=1
    )
