"""Convolutions give the reference's codes and samples, and no row feels its neighbours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from model_repository.serving.mimi import MimiModel
from tests.conftest import GOLDEN
from tests.model_repository.serving.conftest import Models, one, together, turn

ROWS = 4


@pytest.fixture(scope="module")
def halves(golden_models: Path) -> tuple[MimiModel, MimiModel]:
    """Encoder and decoder of the golden checkpoint."""
    models = Models(golden_models, ROWS)
    return models.encoder, models.decoder


def frames() -> np.ndarray:
    samples, _ = soundfile.read(GOLDEN / "user.wav", dtype="float32")
    padded = np.zeros((50, 1920), np.float32)
    padded.reshape(-1)[: len(samples)] = samples[: padded.size]
    return padded


def test_codes_and_samples_are_the_references(halves, golden):
    codes = [one(halves[0], 2, {"pcm": pcm}, start=step == 0)["codes"] for step, pcm in enumerate(frames())]
    np.testing.assert_array_equal(codes, golden["user_codes"])
    agent = np.ascontiguousarray(golden["out_tokens"][:, 1:9])
    pcm = [one(halves[1], 2, {"codes": codes}, start=step == 0)["pcm"] for step, codes in enumerate(agent)]
    np.testing.assert_allclose(pcm, golden["pcm"], atol=1e-6)


def test_a_row_is_bit_identical_in_any_company(halves, golden):
    """Neighbours come, pause and begin anew; what a row hears and says does not change by a bit."""
    generator = np.random.default_rng(0)
    heard = {"pcm": frames()[:20], "codes": np.ascontiguousarray(golden["out_tokens"][:20, 1:9])}
    for model, (name, inputs) in zip(halves, heard.items(), strict=True):
        alone = [one(model, 1, {name: frame}, start=step == 0) for step, frame in enumerate(inputs)]
        for step, frame in enumerate(inputs):
            turns = [turn(model, 1, {name: frame}, start=step == 0)]
            turns += [
                turn(model, row, {name: inputs[generator.integers(20)]}, start=step == 0 or generator.random() < 0.2)
                for row in (0, 2, 3)
                if step == 0 or generator.random() < 0.6
            ]
            answer = together(model, turns)[1]
            for output, array in alone[step].items():
                np.testing.assert_array_equal(answer[output], array)
