"""Each graph, fed what the reference was fed, gives what the reference gave: past the end of every ring."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.conftest import GOLDEN
from tests.model_repository.serving.conftest import Models, one, sampler

ROW = 3


@pytest.fixture(scope="module")
def models(golden_models: Path) -> Models:
    return Models(golden_models)


def test_encoder_gives_the_reference_codes(models, golden):
    samples, _ = soundfile.read(GOLDEN / "user.wav", dtype="float32")
    frames = np.zeros((50, 1920), np.float32)
    frames.reshape(-1)[: len(samples)] = samples[: frames.size]
    codes = [one(models.encoder, ROW, {"pcm": pcm}, start=step == 0)["codes"] for step, pcm in enumerate(frames)]
    np.testing.assert_array_equal(codes, golden["user_codes"])


def test_decoder_gives_the_reference_samples(models, golden):
    agent = np.ascontiguousarray(golden["out_tokens"][:, 1:9])
    pcm = [one(models.decoder, ROW, {"codes": codes}, start=step == 0)["pcm"] for step, codes in enumerate(agent)]
    np.testing.assert_allclose(pcm, golden["pcm"], atol=1e-6)


@pytest.mark.parametrize("prefilled", [0, 1, 20, 70])
def test_temporal_gives_the_reference_hidden_states_and_text(models, golden, prefilled):
    """However many columns are prefilled; the golden prompt of 70 columns is longer than the window of 55."""
    columns = golden["model_input"]
    prompt = int(golden["offset_after_prompt"])
    chunks = [columns[:prefilled]] if prefilled else []
    chunks += [columns[step : step + 1] for step in range(prefilled, len(columns))]
    position = 0
    for chunk in chunks:
        start, position = position == 0, position + len(chunk)
        answer = one(
            models.temporal,
            ROW,
            {"columns": chunk, "embeddings": models.no_embeddings(), **sampler(position)},
            start=start,
        )
        np.testing.assert_allclose(answer["hidden"], golden["hidden"][position - 1], atol=2e-6)
        if prompt <= position < len(columns):
            assert answer["text_token"][0] == columns[position, 0]


def test_depformer_gives_the_reference_codes(models, golden):
    columns, hidden = golden["model_input"], golden["hidden"]
    prompt = int(golden["offset_after_prompt"])
    for column in range(prompt + 1, len(columns)):
        inputs = {"hidden": hidden[column - 1], "text_token": columns[column, :1], **sampler(column)}
        np.testing.assert_array_equal(one(models.depformer, 0, inputs)["codes"], columns[column, 1:9])


def test_embeddings_stand_for_columns(models, golden):
    """A voice preset's summed embeddings and the tokens they were summed from lead to the same state."""
    from model_repository.checkpoint.folder import Checkpoint

    checkpoint = Checkpoint.open(GOLDEN / "checkpoint")
    voice = checkpoint.voice("NATF0")
    rest = golden["model_input"][len(voice.embeddings) : 40]
    inputs = {"columns": rest, "embeddings": voice.embeddings, **sampler(40)}
    answer = one(models.temporal, ROW, inputs, start=True)
    np.testing.assert_allclose(answer["hidden"], golden["hidden"][39], atol=2e-6)
