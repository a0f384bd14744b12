"""Random weights as hard to quantize as trained ones are said to be: outlier channels and heavy tails.

* Elements follow Student's t with 8 degrees of freedom: an excess kurtosis of 1.5, where a normal one has 0.
* Of each norm's scales 1 % are 10 to 20 times as large: channels that carry most of what comes out of the norm, as
  trained transformers have them (LLM.int8(), arXiv:2208.07339; SmoothQuant, arXiv:2211.10438).
* Of each linear map's input channels 1 %, others than those, have weights 10 to 20 times as large. Of three blocks of
  128 weights two hold one, and round the other 127 by its measure.
* The hidden state is not chaotic: each of the 2L sublayers adds 1 / sqrt(2L) of the power that the embeddings begin
  with, as with trained networks' scaled initialization (GPT-2), so that a rounding error neither dies nor explodes.

All maps are scaled by what they are multiplied with, outliers included, to give the same power as they would without.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from model_repository.checkpoint.weights.tensors import Shape
from model_repository.synthetic.random_weights import EMBEDDING, generator_of

Float32 = npt.NDArray[np.float32]

FREEDOM = 8.0
SHARE = 0.01
FACTORS = (10.0, 20.0)

MIDDLE_SIZE = {
    "lm": {
        "dim": 1024,
        "num_layers": 16,
        "num_heads": 8,
        "text_card": 1600,
        "depformer_dim": 256,
        "depformer_num_layers": 4,
        "depformer_num_heads": 4,
        "depformer_dim_feedforward": 1056,
    }
}
"""What a tiny checkpoint's configuration is overridden with: 250 million parameters, heads of 128 as published."""

_GAINS: tuple[tuple[str, float], ...] = (
    # 17 embeddings are summed.
    (r"(emb|text_emb)\.", 17**-0.5),
    (r"depformer_(text_)?emb\.", 1.0),
    # Sharp enough attention to tell columns apart: scores deviate by 2.
    (r".*\.in_proj_weight$", 1.4),
    # silu(g) * u of normal g and u has 0.6 of their deviation.
    (r".*\.linear_out\.weight$", 1 / 0.6),
    (r"text_linear\.", 3.0),
    # The depth transformer's stream, which no norm follows: its entry, an embedding and the layers.
    (r"linears\.", 2.5 / 3**0.5),
)
"""Deviation of what comes out where the input has 1, by name; the first match counts, and 1 where there is none."""

_RESIDUAL = re.compile(r"(.*?)\.?layers\.\d+\..*(out_proj|linear_out)")
_NORM_BEFORE = (
    (re.compile(r"(.*layers\.\d+)\.self_attn\.in_proj_weight$"), r"\1.norm1.alpha"),
    (re.compile(r"(.*layers\.\d+)\.gating\.(\d+\.)?linear_in\.weight$"), r"\1.norm2.alpha"),
    (re.compile(r"(text_linear|depformer_in\.\d+)\.weight$"), "out_norm.alpha"),
)


def outlier_weights(shapes: Mapping[str, Shape], seed: int) -> dict[str, Float32]:
    """A float32 array for every name of a language model; each depends on the seed, its name and its norm's name."""
    return {name: _weight(name, shapes, seed) for name in shapes}


def _weight(name: str, shapes: Mapping[str, Shape], seed: int) -> Float32:
    shape = shapes[name]
    generator = generator_of(name, seed)
    if name.endswith(".alpha"):
        return _alpha(name, shape[-1], seed).reshape(shape)
    weight = _student(generator, shape) * np.float32(_gain(name, shapes))
    if EMBEDDING.match(name):
        return weight
    norm = next((pattern.sub(made, name) for pattern, made in _NORM_BEFORE if pattern.match(name)), None)
    carried = np.ones(shape[1]) if norm is None else _alpha(norm, shape[1], seed).astype(np.float64)
    columns = np.ones(shape[1])
    free = np.flatnonzero(np.abs(carried) < FACTORS[0] / 2)
    chosen = _chosen(generator, len(free))
    columns[free[chosen]] = generator.uniform(*FACTORS, len(chosen))
    columns /= np.sqrt(np.sum((carried * columns) ** 2))
    weight *= columns.astype(np.float32)
    return weight


def _alpha(name: str, width: int, seed: int) -> Float32:
    generator = generator_of(name, seed)
    alpha = 1 + 0.1 * generator.standard_normal(width)
    chosen = _chosen(generator, width)
    alpha[chosen] *= generator.uniform(*FACTORS, len(chosen))
    return alpha.astype(np.float32)


def _chosen(generator: np.random.Generator, width: int) -> npt.NDArray[np.int64]:
    """The share of `width` channels that stick out, at least one."""
    return generator.choice(width, max(1, round(SHARE * width)), replace=False)


def _gain(name: str, shapes: Mapping[str, Shape]) -> float:
    gain = next((gain for pattern, gain in _GAINS if re.match(pattern, name)), 1.0)
    if match := _RESIDUAL.match(name):
        layers = sum(other.startswith(match[1]) and other.endswith("norm1.alpha") for other in shapes)
        gain *= (2 * layers) ** -0.5
    return gain


def _student(generator: np.random.Generator, shape: Shape) -> Float32:
    """Student's t of unit variance: a normal variable over the root of a chi-squared one."""
    spread = generator.standard_gamma(FREEDOM / 2, shape, np.float32)
    spread *= np.float32(2 / (FREEDOM - 2))
    np.sqrt(spread, out=spread)
    return generator.standard_normal(shape, np.float32) / spread
