"""Typed access to the sections of a checkpoint's `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

from model_repository.errors import CheckpointError

_ONLY_VALUES: dict[str, dict[str, Any]] = {
    "lm": {
        "causal": True,
        "layer_scale": None,
        "gating": "silu",
        "norm": "rms_norm_f32",
        "positional_embedding": "rope",
        "depformer_layer_scale": None,
        "depformer_multi_linear": True,
        "depformer_gating": "silu",
        "depformer_pos_emb": "none",
        "depformer_weights_per_step": True,
    },
    "seanet": {
        "channels": 1,
        "causal": True,
        "n_residual_layers": 1,
        "activation": "ELU",
        "norm": "none",
        "pad_mode": "constant",
        "true_skip": True,
    },
    "mimi_transformer": {
        "causal": True,
        "gating": "none",
        "norm": "layer_norm",
        "positional_embedding": "rope",
    },
}
"""Keywords that change what is computed: the graphs compute the published way only."""


class Section:
    """One section of `config.json`; an absent one is empty."""

    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        values = config.get(name, {})
        if not isinstance(values, Mapping):
            raise CheckpointError(f"config.json: section {name!r} must be an object, got {type(values).__name__}")
        self._name = name
        self._values = values

    def check_only_values(self) -> None:
        """Raises `CheckpointError` for a keyword whose value asks for another computation than the published one."""
        for key, only in _ONLY_VALUES[self._name].items():
            value = self._values.get(key, only)
            self._require(value == only, key, repr(only), value)

    def integer(self, key: str, default: int) -> int:
        """A positive integer, or `default` if the key is absent; `CheckpointError` for anything else."""
        value = self._values.get(key, default)
        self._require(type(value) is int and value >= 1, key, "a positive integer", value)
        return int(value)

    def number(self, key: str, default: float) -> float:
        """A positive finite number, or `default` if the key is absent; `CheckpointError` for anything else."""
        value = self._values.get(key, default)
        self._require(type(value) in (int, float) and 0 < value < inf, key, "a positive number", value)
        return float(value)

    def integers(self, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """A list of natural numbers, or `default` if the key is absent; `CheckpointError` for anything else."""
        value = self._values.get(key, default)
        listed = isinstance(value, (list, tuple)) and all(type(item) is int and item >= 0 for item in value)
        self._require(listed, key, "a list of integers", value)
        return tuple(value)

    def _require(self, holds: bool, key: str, expected: str, value: Any) -> None:
        if not holds:
            raise CheckpointError(f"config.json: {self._name}.{key} must be {expected}, got {value!r}")
