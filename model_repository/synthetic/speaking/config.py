"""The one configuration of the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model_repository.checkpoint.geometry import Geometry

PUBLISHED_CARD = 2048
"""Audio vocabulary of the published model, whose prompt constants a checkpoint must have."""

DELAYS = (0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1)


@dataclass(frozen=True)
class SpeakingConfig:
    """Sizes, seeds and budgets of all stages."""

    seed: int = 0

    phrasings: int = 24
    """Phrasings of an intent at most."""
    fallback_phrasings: int = 160
    further_phrasings: int = 90
    """Phrasings of an intent at most that fewer speakers speak."""
    held_out_phrasings: int = 4
    """Phrasings of an intent that are never trained on."""

    card: int = 256
    """Distinct codes of a codebook; the checkpoint repeats them to PUBLISHED_CARD rows."""
    dimension: int = 128
    codebook_dim: int = 64
    n_filters: int = 16
    mimi_num_layers: int = 4
    mimi_context: int = 100

    dim: int = 192
    num_layers: int = 4
    num_heads: int = 6
    depformer_dim: int = 96
    depformer_num_layers: int = 2
    depformer_num_heads: int = 4
    text_card: int = 640
    context: int = 3000

    front_end_steps: int = 2500
    semantic_steps: int = 12000
    decoder_steps: int = 16000
    language_model_steps: int = 6000

    def sections(self, card: int) -> Mapping[str, Mapping[str, Any]]:
        """Return `config.json` for an audio vocabulary of `card` codes."""
        return {
            "lm": {
                "dim": self.dim,
                "num_layers": self.num_layers,
                "num_heads": self.num_heads,
                "hidden_scale": 4.125,
                "context": self.context,
                "max_period": 10_000,
                "card": card,
                "text_card": self.text_card,
                "existing_text_padding_id": 3,
                "n_q": 16,
                "dep_q": 16,
                "depformer_dim": self.depformer_dim,
                "depformer_num_layers": self.depformer_num_layers,
                "depformer_num_heads": self.depformer_num_heads,
                "depformer_dim_feedforward": 4 * self.depformer_dim,
                "delays": list(DELAYS),
            },
            "seanet": {
                "dimension": self.dimension,
                "n_filters": self.n_filters,
                "ratios": [8, 6, 5, 4],
                "kernel_size": 7,
                "residual_kernel_size": 3,
                "last_kernel_size": 3,
                "compress": 2,
            },
            "quantizer": {"dimension": self.codebook_dim, "n_q": 8, "bins": card},
            "mimi_transformer": {
                "d_model": self.dimension,
                "num_layers": self.mimi_num_layers,
                "num_heads": 4,
                "dim_feedforward": 4 * self.dimension,
                "context": self.mimi_context,
                "max_period": 10_000,
                "layer_scale": 0.1,
            },
        }

    def geometry(self, card: int | None = None) -> Geometry:
        """Return the sizes of the checkpoint, or of the models that are trained: with the distinct codes only."""
        return Geometry.from_config(self.sections(card or self.card))
