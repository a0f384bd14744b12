"""What is recorded is what the served models compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from model_repository.errors import EvaluationError
from model_repository.evaluation.conversation import AGENT, TEXT, Conversation, Models, Prompt
from model_repository.evaluation.repository import Repository
from model_repository.evaluation.teacher_forcing import Record, teacher_force
from model_repository.serving.row_request import run_one
from tests.model_repository.evaluation.conftest import LAYERS
from tests.model_repository.serving.host_memory import HostMemory

Pair = tuple[Repository, Repository]


@pytest.fixture(scope="module")
def spoken(pair: Pair, prompt: Prompt, frames: NDArray[np.float32]) -> Conversation:
    return Models(pair[0], slots=2).converse(prompt, frames, lambda _: None)


@pytest.fixture(scope="module")
def followed(pair: Pair, prompt: Prompt, spoken: Conversation) -> Record:
    return teacher_force(pair[0], prompt, spoken.columns, [0, 5], lambda _: None)


def test_the_first_choices_are_the_tokens_that_were_said(spoken: Conversation, followed: Record) -> None:
    np.testing.assert_array_equal(followed.text_logits.argmax(-1), spoken.columns[1:, TEXT])
    np.testing.assert_array_equal(followed.audio_logits.argmax(-1), spoken.columns[1:, AGENT])


def served_hidden(repository: Repository, prompt: Prompt, columns: NDArray[np.int64]) -> NDArray[np.float32]:
    """What the served model makes of the last of `columns` [T, 17] after the prompt."""
    inputs = {
        "columns": np.concatenate([prompt.columns, columns]),
        "embeddings": prompt.embeddings,
        "sampler": np.array([0, 0, 1], np.int64),
        "temperature": np.zeros(1, np.float32),
    }
    model = Models(repository, slots=1).temporal
    model.slots.begin(0)
    hidden: NDArray[np.float32] = run_one(model, 0, inputs)["hidden"]
    return hidden


def test_hidden_is_that_of_the_served_model(pair: Pair, prompt: Prompt, spoken: Conversation, followed: Record) -> None:
    hidden = served_hidden(pair[0], prompt, spoken.columns[:-1])
    np.testing.assert_allclose(followed.hidden[-1], hidden, atol=1e-4)


def test_the_last_layer_is_what_the_final_norm_gets(followed: Record) -> None:
    """They differ by the norm's scales, which are the same at every column."""
    stream = followed.layers[:, -1] / np.sqrt(np.mean(followed.layers[:, -1] ** 2, axis=-1, keepdims=True))
    scales = followed.hidden[[0, 5]] / stream
    np.testing.assert_allclose(scales[0], scales[1], rtol=1e-3)


def test_each_codebook_is_led_by_those_before_it(pair: Pair, prompt: Prompt, spoken: Conversation) -> None:
    """A changed token of codebook 3 changes the logits of those after it, and of no other."""
    columns = spoken.columns[:2].copy()
    before = teacher_force(pair[0], prompt, columns, [], lambda _: None).audio_logits[0]
    columns[1, AGENT][3] = (columns[1, AGENT][3] + 1) % 2048
    after = teacher_force(pair[0], prompt, columns, [], lambda _: None).audio_logits[0]
    np.testing.assert_array_equal(before[:4], after[:4])
    assert all((before[step] != after[step]).any() for step in range(4, 8))


def test_a_prompt_longer_than_the_window_is_fed(pair: Pair, prompt: Prompt, spoken: Conversation) -> None:
    """Past the end of the ring of 511 columns one by one."""
    long = Prompt(prompt.embeddings[:0], np.resize(spoken.columns[:-1], (600, 17)), prompt.known)
    hidden = teacher_force(pair[0], long, spoken.columns[:2], [], lambda _: None).hidden[0]
    np.testing.assert_allclose(hidden, served_hidden(pair[0], long, spoken.columns[:1]), atol=1e-4)


def test_on_a_device_the_same_is_seen(
    pair_for_cuda: Path,
    prompt: Prompt,
    spoken: Conversation,
    followed: Record,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Graphs for CUDA, float32, whose state lies in memory that stands in for a GPU's."""
    device = HostMemory()
    monkeypatch.setattr(Repository, "device", lambda _: device)
    repository = Repository.open(pair_for_cuda)
    record = teacher_force(repository, prompt, spoken.columns, [0, 5], lambda _: None)
    assert device.blocks
    for seen, expected in zip(vars(record).values(), vars(followed).values(), strict=True):
        np.testing.assert_allclose(seen, expected, atol=1e-3)
    models = Models(repository, 1, device)
    assert models.fill_states() > 0
    silent = np.zeros((2, 1920), np.float32)
    assert (models.converse(prompt, silent, lambda _: None).columns[:-1] >= 0).all()


def test_a_value_that_is_not_there_is_named(
    pair: Pair, prompt: Prompt, spoken: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Repository, "layers", LAYERS + 1)
    with pytest.raises(EvaluationError, match=rf"no value 'layers\.{LAYERS}\.out'"):
        teacher_force(Repository(pair[0].folder, pair[0].manifest), prompt, spoken.columns, [0], lambda _: None)
