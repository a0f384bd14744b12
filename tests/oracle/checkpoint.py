"""The checkpoint of the second oracle: another geometry than the golden one, odd in every number that may be odd."""

from __future__ import annotations

from pathlib import Path

from model_repository.synthetic.tiny import write_tiny_checkpoint

SEED = 11

CONFIG = {
    "lm": {
        "dim": 48,
        "num_layers": 3,
        "num_heads": 3,
        "context": 300,
        "text_card": 500,
        "depformer_dim": 36,
        "depformer_num_layers": 3,
        "depformer_num_heads": 3,
        "depformer_dim_feedforward": 150,
    },
    "seanet": {"dimension": 40, "n_filters": 5},
    "quantizer": {"dimension": 24, "n_q": 10},
    "mimi_transformer": {"d_model": 40, "num_layers": 3, "num_heads": 5, "dim_feedforward": 100, "context": 250},
}

PROMPT = "You enjoy having a good conversation."


def write(out: Path) -> None:
    """The same bytes for the generator and for the test."""
    write_tiny_checkpoint(out, seed=SEED, config=CONFIG, lm_dtype="float32")
