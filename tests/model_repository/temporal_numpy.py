"""The temporal transformer in plain NumPy, a whole sequence at once: what its semantics are, without rings or steps.

Layer by layer over all columns, in float64; every query attends to itself and the `window - 1` keys before it. Nothing
is carried from column to column, so nothing can drift. As in the reference, angles of the rotary positions are float32
products of the absolute position and a float32 frequency.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_repository.checkpoint.geometry import LmGeometry
from model_repository.checkpoint.weights.tensors import TensorSource

Doubles = NDArray[np.float64]

_BLOCK = 512
"""Queries whose scores are in memory at once."""


class TemporalNumpy:
    """The weights that the temporal half of a checkpoint's language model has."""

    def __init__(self, source: TensorSource, geometry: LmGeometry) -> None:
        self._source = source
        self._geometry = geometry
        self._transformer = geometry.temporal

    def hidden(self, columns: NDArray[np.int64], first: int = 0) -> Doubles:
        """columns [T, 17], of which the first has position `first` -> hidden states after the final norm [T, dim]."""
        x = self._weight("text_emb.weight")[columns[:, 0]]
        for stream in range(columns.shape[1] - 1):
            x = x + self._weight(f"emb.{stream}.weight")[columns[:, 1 + stream]]
        positions = np.arange(first, first + len(columns))
        for index in range(self._transformer.num_layers):
            layer = f"transformer.layers.{index}"
            normed = self._norm(x, f"{layer}.norm1.alpha")
            x = x + self._attend(normed, layer, positions) @ self._weight(f"{layer}.self_attn.out_proj.weight").T
            normed = self._norm(x, f"{layer}.norm2.alpha")
            gate, up = np.split(normed @ self._weight(f"{layer}.gating.linear_in.weight").T, 2, axis=-1)
            x = x + (gate / (1 + np.exp(-gate)) * up) @ self._weight(f"{layer}.gating.linear_out.weight").T
        return self._norm(x, "out_norm.alpha")

    def text_logits(self, hidden: Doubles) -> Doubles:
        """hidden [T, dim] -> logits of the next column's text token [T, text_card]."""
        return hidden @ self._weight("text_linear.weight").T

    def _attend(self, x: Doubles, layer: str, positions: NDArray[np.int64]) -> Doubles:
        heads, size = self._transformer.num_heads, self._transformer.head_dim
        projected = x @ self._weight(f"{layer}.self_attn.in_proj_weight").T
        query, key, value = (part.reshape(len(x), heads, size) for part in np.split(projected, 3, axis=-1))
        query, key = self._rotated(query, positions), self._rotated(key, positions)
        attended = np.empty_like(query)
        for start in range(0, len(x), _BLOCK):
            stop = min(start + _BLOCK, len(x))
            oldest = max(start - self._transformer.window + 1, 0)
            age = np.arange(start, stop)[:, None] - np.arange(oldest, stop)[None]
            visible = (age >= 0) & (age < self._transformer.window)
            for head in range(heads):
                scores = query[start:stop, head] @ key[oldest:stop, head].T / np.sqrt(size)
                scores = np.where(visible, scores, -np.inf)
                weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
                attended[start:stop, head] = weights @ value[oldest:stop, head] / weights.sum(axis=-1, keepdims=True)
        return attended.reshape(len(x), -1)

    def _rotated(self, x: Doubles, positions: NDArray[np.int64]) -> Doubles:
        """Interleaved pairs (2i, 2i + 1) of x [T, heads, size], turned by position * max_period^(-2i / size)."""
        size = x.shape[-1]
        steps = np.arange(size // 2, dtype=np.float32)
        frequencies = np.exp(steps * np.float32(-np.log(self._transformer.max_period) * 2 / size))
        angles = (positions.astype(np.float32)[:, None] * frequencies).astype(np.float64)[:, None]
        even, odd = x[..., 0::2], x[..., 1::2]
        turned = np.empty_like(x)
        turned[..., 0::2] = even * np.cos(angles) - odd * np.sin(angles)
        turned[..., 1::2] = even * np.sin(angles) + odd * np.cos(angles)
        return turned

    def _norm(self, x: Doubles, key: str) -> Doubles:
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-8) * self._weight(key).reshape(-1)

    def _weight(self, key: str) -> NDArray[Any]:
        return self._source.read(key).astype(np.float64)
