"""How far the variants may be from the checkpoint, on weights with outlier channels.

The short form is `tests/model_repository/test_variants.py`, on weights without them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.numpy import load_file

from loadtest.bench.models.outlier_weights import MIDDLE_SIZE, outlier_weights
from loadtest.bench.models.quality import round_plainly
from model_repository.build import build_repository
from model_repository.evaluation.conversation import Prompt
from model_repository.evaluation.evaluate import evaluate
from model_repository.evaluation.report import Evaluated
from model_repository.evaluation.repository import Repository
from model_repository.evaluation.speech import synthetic_speech
from model_repository.synthetic.tiny import write_tiny_checkpoint

FRAMES = 60
SMALL = MIDDLE_SIZE["lm"] | {
    "dim": 512,
    "num_layers": 8,
    "num_heads": 4,
    "text_card": 512,
    "context": 256,
    "depformer_dim": 128,
    "depformer_num_layers": 2,
    "depformer_num_heads": 2,
    "depformer_dim_feedforward": 528,
}
"""Half as wide as the middle size and half as deep; heads and blocks are 128 wide too."""

VARIANTS = ("fp32", "fp16", "mixed", "int8", "int4")
"""Largest first."""

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Evaluated]:
    """By folder name: the variants, and plain rounding."""
    folder = tmp_path_factory.mktemp("outliers")
    checkpoint = folder / "checkpoint"
    write_tiny_checkpoint(checkpoint, config={"lm": SMALL}, lm_dtype="float32", lm_weights=outlier_weights)
    for variant in VARIANTS:
        build_repository(checkpoint, folder / variant, slots=1, variant=variant)
    round_plainly(checkpoint, folder / "rounded", bits=4)
    build_repository(folder / "rounded", folder / "plain", slots=1)
    reference, *others = (Repository.open(folder / name) for name in (*VARIANTS, "plain"))
    voice = load_file(reference.folder / "voices" / "NATF0.safetensors")
    prompt = Prompt(voice["embeddings"], voice["columns"][:1], voice["columns"][1])
    frames = synthetic_speech(FRAMES * 0.08, 24_000).reshape(FRAMES, 1920)
    report = evaluate(others, reference, prompt, frames)
    return {Path(repository.models).name: repository for repository in report.repositories}


@pytest.mark.parametrize(
    ("variant", "cosine"),
    [("fp16", 0.99999), ("int8", 0.9995), ("mixed", 0.9995), ("int4", 0.99)],
)
def test_hidden_states_keep_their_direction(evaluated: dict[str, Evaluated], variant: str, cosine: float) -> None:
    assert evaluated[variant].quality.hidden_cosine.mean >= cosine


def test_four_bits_are_better_than_plain_ones(evaluated: dict[str, Evaluated]) -> None:
    """Less than a third of the power of the error, at the same size."""
    plain, ours = evaluated["plain"].quality, evaluated["int4"].quality
    assert ours.hidden_error**2 < plain.hidden_error**2 / 3
    assert ours.text.divergence < plain.text.divergence
    assert ours.audio.divergence < plain.audio.divergence
    assert ours.audio.agreement > plain.audio.agreement


def test_less_precision_takes_less_room(evaluated: dict[str, Evaluated]) -> None:
    sizes = [evaluated[variant].disk_bytes for variant in VARIANTS]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)
    slots = {evaluated[variant].kv: evaluated[variant].slot_bytes for variant in VARIANTS}
    assert list(slots.values()) == sorted(set(slots.values()), reverse=True)
    assert len(slots) > 1


def test_what_was_rounded_worst_is_named(evaluated: dict[str, Evaluated]) -> None:
    assert evaluated["fp32"].weights is None
    weights = evaluated["int4"].weights
    assert weights is not None
    relative = [tensor["relative"] for tensor in weights.worst]
    assert relative == sorted(relative, reverse=True)
    assert weights.worst[0]["bits"] == 4
    assert weights.worst[0]["tensor"].startswith("transformer.layers.")
    assert weights.tensors > SMALL["num_layers"] * 4
