"""Random weights whose activations neither vanish nor explode, for a checkpoint of any geometry."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from model_repository.checkpoint.weights.tensors import Shape

_GAINS: tuple[tuple[str, float], ...] = (
    # The language model. 17 embeddings are summed: each has a 17th of the sum's variance.
    (r"(emb|text_emb)\.", 17**-0.5),
    (r"depformer_(text_)?emb\.", 1.0),
    (r"text_linear\.", 2.0),
    (r"linears\.", 4.0),
    # Mimi. An ELU takes about a third of the variance; speech comes in at a tenth of full scale; blocks are corrections
    # to their skip connection; what goes out must stay within full scale.
    (r"encoder\.model\.0\.", 10.0),
    (r"decoder\.model\.[1-9]\d*\.conv\.", 0.016),
    (r".*\.block\.3\.", 0.5),
    (r"(encoder|decoder)\.model\.", 1.25),
    (r"downsample\.", 0.7),
)
"""Factor on the deviation that keeps the variance, by name; the first match counts, and 1 where there is none."""

EMBEDDING = re.compile(r"(emb|text_emb|depformer_emb|depformer_text_emb)\.")
_TRANSPOSED = re.compile(r".*\.convtr\.weight$")
_MEAN_DEVIATION = (
    (re.compile(r".*(\.alpha|norm[12]\.weight)$"), 1.0, 0.1),
    (re.compile(r".*layer_scale_[12]\.scale$"), 0.1, 0.01),
    (re.compile(r".*\.bias$"), 0.0, 0.02),
)


def random_weights(shapes: Mapping[str, Shape], seed: int) -> dict[str, npt.NDArray[np.float32]]:
    """A float32 array for every name; each depends on the seed and its own name only."""
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    for name, shape in shapes.items():
        if not name.endswith(("._initialized", ".cluster_usage", ".embedding_sum")):
            tensors[name] = _weight(name, shape, generator_of(name, seed))
    for name, shape in shapes.items():
        if name.endswith(".embedding_sum"):
            tensors |= _codebook(name.removesuffix(".embedding_sum"), shape, generator_of(name, seed))
    return tensors


def deviation(name: str, shape: Shape) -> float:
    """Standard deviation of the elements of a language model's or Mimi's matrix, lookup table or kernel."""
    gain = next((gain for pattern, gain in _GAINS if re.match(pattern, name)), 1.0)
    return float(gain * _fan_in(name, shape) ** -0.5)


def generator_of(name: str, seed: int) -> np.random.Generator:
    """The generator of one tensor, a function of its name and the seed."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def _weight(name: str, shape: Shape, generator: np.random.Generator) -> npt.NDArray[np.float32]:
    known = ((mean, spread) for pattern, mean, spread in _MEAN_DEVIATION if pattern.match(name))
    mean, spread = next(known, (0.0, deviation(name, shape)))
    return (mean + spread * generator.standard_normal(shape, np.float32)).astype(np.float32)


def _fan_in(name: str, shape: Shape) -> int:
    """Inputs that one output sums: [out, in(, k)] sums in × k, a lookup 1, [in, out, k] with stride k/2 two taps."""
    if EMBEDDING.match(name):
        return 1
    if _TRANSPOSED.match(name):
        return 2 if name.startswith("upsample.") else 2 * shape[0]
    return prod(shape[1:])


def _codebook(prefix: str, shape: Shape, generator: np.random.Generator) -> dict[str, npt.NDArray[Any]]:
    """Buffers of one codebook.

    All its centroids have one length: the nearest one to a vector is then the one that points its way, however short
    the vector is, and every sound finds codes of its own.
    """
    directions = generator.standard_normal(shape, np.float32)
    centroids = directions * (shape[1] ** 0.5 / np.linalg.norm(directions, axis=1, keepdims=True))
    usage = generator.uniform(1.0, 50.0, shape[0]).astype(np.float32)
    return {
        f"{prefix}._initialized": np.ones(1, np.float32),
        f"{prefix}.cluster_usage": usage,
        f"{prefix}.embedding_sum": (centroids * usage[:, None]).astype(np.float32),
    }
