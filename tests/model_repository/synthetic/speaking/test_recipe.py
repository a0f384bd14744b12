"""The stages fit together: from speech to a checkpoint that can be opened, with budgets of a few steps."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from model_repository.checkpoint.folder import Checkpoint
from model_repository.errors import BuildError
from model_repository.evaluation.questions import EvaluationSet
from model_repository.synthetic.speaking import agent, speech
from model_repository.synthetic.speaking.config import SpeakingConfig
from model_repository.synthetic.speaking.export import QUESTION, check_hashes
from model_repository.synthetic.speaking.intents import BY_NAME, answers
from model_repository.synthetic.speaking.speech import AGENT, HELD_OUT_USERS, READERS, USERS, Line
from model_repository.synthetic.speaking.vocoder import FRAME_SIZE, HOPS, Analysis
from model_repository.synthetic.speaking.voices import NAMES

pytest.importorskip("torch")
recipe = pytest.importorskip("model_repository.synthetic.speaking.recipe")

CONFIG = SpeakingConfig(
    card=256,
    n_filters=2,
    dim=48,
    num_layers=1,
    depformer_dim=32,
    depformer_num_layers=1,
    front_end_steps=2,
    semantic_steps=8,
    decoder_steps=2,
    language_model_steps=2,
)


def tone(text: str, seconds: float) -> np.ndarray:
    """Sound that depends on a text: a few partials and noise."""
    generator = np.random.default_rng(len(text))
    time = np.arange(int(seconds * 24_000)) / 24_000
    partials = sum(np.sin(2 * np.pi * hertz * time) for hertz in generator.uniform(100, 3000, 4))
    return (0.05 * partials + 0.01 * generator.standard_normal(len(time))).astype(np.float32)


def vowel(sound: np.ndarray) -> Analysis:
    """An analysis without WORLD."""
    count = -(-len(sound) // FRAME_SIZE) * HOPS
    return Analysis(np.full(count, 120.0), np.full((count, 513), 1e-5), np.full((count, 513), 0.2))


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(agent, "analyse", vowel)
    monkeypatch.setattr(recipe, "agent_voices", lambda _speech: [(0, "NATF0"), (1, "VARF3"), (90, "NATM0")])
    monkeypatch.setattr(recipe.Recipe, "_beside", lambda _self, _stage: contextlib.nullcontext())
    monkeypatch.setattr(recipe, "phonemes", lambda text: text.replace(" ", ""))
    speaker = SimpleNamespace(speak=lambda text: tone(text, 1.0))
    monkeypatch.setattr(recipe, "HELD_OUT_USERS", {**HELD_OUT_USERS, recipe.DEMO_SPEAKER: speaker})
    folder = tmp_path / "speech"
    folder.mkdir()
    own = [Line(reader, AGENT, text) for reader in READERS for text in answers()]
    asked = [
        Line(speaker, intent, text, held_out)
        for intent in list(BY_NAME)[:6]
        for speaker in (next(iter(USERS)), next(iter(HELD_OUT_USERS)))
        for text, held_out in ((f"{intent} one", False), (f"{intent} two", True), (f"{intent} three", False))
    ]
    for name, lines in (("agent-000.npz", own), ("program-000.npz", asked)):
        speech.write_block(folder / name, lines, [tone(line.text, 1.0 if name[0] == "a" else 0.8) for line in lines])
    return tmp_path


def test_a_checkpoint_comes_out_and_a_second_run_goes_on_from_the_first(work: Path, tmp_path: Path) -> None:
    made = recipe.Recipe(work, CONFIG)
    assert len(made.trained) == 12
    assert len(made.held_out(speakers=True, phrasings=False)) == 12
    assert len(made.held_out(speakers=False, phrasings=True)) == 6
    made.train(tmp_path / "out")
    checkpoint = Checkpoint.open(tmp_path / "out" / "checkpoint")
    assert checkpoint.geometry == CONFIG.geometry(2048)
    assert set(checkpoint.voices) == set(NAMES)
    compact = tmp_path / "out" / "compact"
    assert sum(file.stat().st_size for file in compact.iterdir()) < 25e6
    check_hashes(compact)
    asked = EvaluationSet.load(checkpoint.path)
    assert asked is not None
    assert {question.group for question in asked.questions} == {recipe.VOICES_GROUP, recipe.PHRASINGS_GROUP}

    (compact / QUESTION.name).write_bytes(b"damaged")
    with pytest.raises(BuildError, match=QUESTION.name):
        check_hashes(compact)

    first = (tmp_path / "out" / "compact" / "lm.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "out")
    recipe.Recipe(work, CONFIG).train(tmp_path / "out")
    assert (tmp_path / "out" / "compact" / "lm.safetensors").read_bytes() == first


def test_a_stage_beside_the_others_that_fails_stops_the_recipe(tmp_path: Path) -> None:
    # There is no speech from which the decoder could learn.
    with (
        pytest.raises(RuntimeError, match="the stage decoder ended with status 1"),
        recipe.Recipe(tmp_path)._beside("decoder"),
    ):
        pass
