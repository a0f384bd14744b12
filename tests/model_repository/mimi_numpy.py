"""Mimi in plain NumPy, whole signals at once: slow, short, and independent of the graphs it is compared with."""

from __future__ import annotations

import math

import numpy as np

from model_repository.checkpoint.geometry import AGENT_CODEBOOKS, MimiGeometry
from model_repository.checkpoint.weights.tensors import TensorSource


def encode(pcm: np.ndarray, mimi: TensorSource, geometry: MimiGeometry) -> np.ndarray:
    """Codes [frames, 8] of samples [frames * 1920], the encoder starting fresh."""
    x = pcm.astype(np.float32)[None]
    x = _conv(x, mimi, "encoder.model.0.conv.conv")
    for stage, ratio in enumerate(reversed(geometry.ratios)):
        x = _block(x, mimi, f"encoder.model.{3 * stage + 1}")
        x = _conv(_elu(x), mimi, f"encoder.model.{3 * stage + 3}.conv.conv", ratio)
    x = _conv(_elu(x), mimi, f"encoder.model.{3 * len(geometry.ratios) + 2}.conv.conv")
    x = _transformer(x, mimi, "encoder_transformer", geometry)
    weight = mimi.read("downsample.conv.conv.conv.weight")
    x = _convolve(np.concatenate([x[:, :1], x[:, :1], x], axis=1), weight, 2)
    codes = []
    for branch, count in (("rvq_first", 1), ("rvq_rest", AGENT_CODEBOOKS - 1)):
        rest = mimi.read(f"quantizer.{branch}.input_proj.weight")[:, :, 0] @ x
        for index in range(count):
            centroids = _centroids(mimi, branch, index)
            code = (np.square(centroids).sum(1)[:, None] - 2 * centroids @ rest).argmin(0)
            codes.append(code)
            rest = rest - centroids[code].T
    return np.stack(codes, 1)


def decode(codes: np.ndarray, mimi: TensorSource, geometry: MimiGeometry) -> np.ndarray:
    """Samples [frames * 1920] of codes [frames, 8], the decoder starting fresh."""
    x = mimi.read("quantizer.rvq_first.output_proj.weight")[:, :, 0] @ _centroids(mimi, "rvq_first", 0)[codes[:, 0]].T
    rest = sum(_centroids(mimi, "rvq_rest", index)[codes[:, index + 1]] for index in range(AGENT_CODEBOOKS - 1))
    x = x + mimi.read("quantizer.rvq_rest.output_proj.weight")[:, :, 0] @ rest.T
    upsample = mimi.read("upsample.convtr.convtr.convtr.weight")
    x = _deconvolve(x, np.eye(len(upsample))[:, :, None] * upsample, 2)
    x = _transformer(x, mimi, "decoder_transformer", geometry)
    x = _conv(x, mimi, "decoder.model.0.conv.conv")
    for stage, ratio in enumerate(geometry.ratios):
        name = f"decoder.model.{3 * stage + 2}.convtr.convtr"
        x = _deconvolve(_elu(x), mimi.read(f"{name}.weight"), ratio) + mimi.read(f"{name}.bias")[:, None]
        x = _block(x, mimi, f"decoder.model.{3 * stage + 3}")
    return _conv(_elu(x), mimi, f"decoder.model.{3 * len(geometry.ratios) + 2}.conv.conv")[0]


def _conv(x: np.ndarray, mimi: TensorSource, name: str, stride: int = 1) -> np.ndarray:
    weight = mimi.read(f"{name}.weight")
    padded = np.pad(x, ((0, 0), (weight.shape[2] - stride, 0)))
    return _convolve(padded, weight, stride) + mimi.read(f"{name}.bias")[:, None]


def _convolve(x: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2], axis=1)[:, ::stride]
    return np.einsum("itk,oik->ot", windows, weight, optimize=True)


def _deconvolve(x: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
    """Transposed convolution without the samples that the next frames would still add to."""
    taps = np.einsum("it,iok->otk", x, weight, optimize=True)
    out = np.zeros((taps.shape[0], x.shape[1] * stride + weight.shape[2] - stride), np.float32)
    for step in range(x.shape[1]):
        out[:, step * stride : step * stride + weight.shape[2]] += taps[:, step]
    return out[:, : x.shape[1] * stride]


def _block(x: np.ndarray, mimi: TensorSource, name: str) -> np.ndarray:
    return x + _conv(_elu(_conv(_elu(x), mimi, f"{name}.block.1.conv.conv")), mimi, f"{name}.block.3.conv.conv")


def _elu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def _transformer(x: np.ndarray, mimi: TensorSource, name: str, geometry: MimiGeometry) -> np.ndarray:
    """All steps at once; the two steps of a frame see no key older than `window` before the frame's end."""
    transformer = geometry.transformer
    heads, width, steps = transformer.num_heads, transformer.head_dim, x.shape[1]
    position = np.arange(steps)
    end = (position // 2 + 1) * 2
    seen = (position[None] <= position[:, None]) & (position[None] >= (end - transformer.window)[:, None])
    angle = position[:, None] * transformer.max_period ** (-np.arange(0, width, 2) / width)

    def rotate(y: np.ndarray) -> np.ndarray:
        even, odd = y[..., ::2], y[..., 1::2]
        cos, sin = np.cos(angle), np.sin(angle)
        return np.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(y.shape)

    x = x.T
    for index in range(transformer.num_layers):
        layer = f"{name}.transformer.layers.{index}"
        qkv = _norm(x, mimi, f"{layer}.norm1") @ mimi.read(f"{layer}.self_attn.in_proj_weight").T
        q, k, v = qkv.reshape(steps, 3, heads, width).transpose(1, 2, 0, 3)
        scores = rotate(q) @ rotate(k).transpose(0, 2, 1) / math.sqrt(width)
        scores = np.where(seen, scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        attended = (scores / scores.sum(-1, keepdims=True)) @ v
        attended = attended.transpose(1, 0, 2).reshape(steps, -1) @ mimi.read(f"{layer}.self_attn.out_proj.weight").T
        x = x + mimi.read(f"{layer}.layer_scale_1.scale") * attended
        hidden = _norm(x, mimi, f"{layer}.norm2") @ mimi.read(f"{layer}.linear1.weight").T
        hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
        x = x + mimi.read(f"{layer}.layer_scale_2.scale") * (hidden @ mimi.read(f"{layer}.linear2.weight").T)
    return x.T


def _norm(x: np.ndarray, mimi: TensorSource, name: str) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-5)
    return scaled * mimi.read(f"{name}.weight") + mimi.read(f"{name}.bias")


def _centroids(mimi: TensorSource, branch: str, index: int) -> np.ndarray:
    codebook = f"quantizer.{branch}.vq.layers.{index}._codebook"
    usage = np.maximum(mimi.read(f"{codebook}.cluster_usage"), 1e-5)
    return mimi.read(f"{codebook}.embedding_sum") / usage[:, None]
