"""START: a conversation's outputs do not depend on what its row held before, on the CPU and on a device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from model_repository.serving.device_session import DeviceSession
from model_repository.serving.mimi import MAX_SAMPLE
from model_repository.serving.row_request import BadInputError
from model_repository.serving.session import Session, StatefulSession
from tests.model_repository.serving.conftest import Array, Models, one, sampler
from tests.model_repository.serving.host_memory import HostMemory

ROW = 1
FRAMES = 4
SAMPLES = {"the largest float": 3e38, "huge": 1e30, "denormal": 1e-40}


@pytest.fixture(params=["golden_models", "cuda_models"], ids=["cpu", "device"])
def repository(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture
def models(repository: Path) -> Models:
    return Models(repository, slots=2)


def requests(models: Models, model: str) -> list[Mapping[str, Array]]:
    """The inputs of a short conversation, one mapping per execution; the temporal model begins with a prompt."""
    random = np.random.default_rng(5)
    if model == "encoder":
        return [{"pcm": frame} for frame in random.standard_normal((FRAMES, 1920)).astype(np.float32) * 0.2]
    if model == "decoder":
        return [{"codes": frame} for frame in random.integers(0, models.card, (FRAMES, 8))]
    columns = random.integers(0, models.text_card, (3 + FRAMES, 17))
    embeddings = random.standard_normal((2, models.dim)).astype(np.float32)
    prompt = {"columns": columns[:3], "embeddings": embeddings, **sampler(5)}
    return [prompt, *({"columns": columns[3 + i : 4 + i], **sampler(6 + i)} for i in range(FRAMES))]


def converse(models: Models, model: str) -> list[Array]:
    """All outputs of the conversation of `requests` in ROW."""
    outputs: list[Array] = []
    for index, inputs in enumerate(requests(models, model)):
        outputs += one(getattr(models, model), ROW, inputs, start=index == 0).values()
    return outputs


def assert_as_fresh(models: Models, repository: Path, model: str) -> None:
    for got, expected in zip(converse(models, model), converse(Models(repository, 2), model), strict=True):
        np.testing.assert_array_equal(got, expected)


def poison(session: Session) -> None:
    """Set every bit of every state: NaN in each floating-point format."""
    if isinstance(session, StatefulSession):
        for array in session._states.values():
            array.view(np.uint8)[:] = 0xFF
        return
    assert isinstance(session, DeviceSession)
    assert isinstance(session._device, HostMemory)
    for placed in session._states.values():
        session._device.blocks[placed.address][:] = 0xFF


@pytest.mark.parametrize("model", ["encoder", "decoder", "temporal"])
def test_start_cleans_a_row_whatever_its_state_holds(models: Models, repository: Path, model: str):
    poison(getattr(models, model).session)
    assert_as_fresh(models, repository, model)


@pytest.mark.parametrize("model", ["encoder", "decoder", "temporal"])
def test_start_in_a_running_conversation_restarts_it(models: Models, repository: Path, model: str):
    converse(models, model)
    assert_as_fresh(models, repository, model)


@pytest.mark.parametrize("size", SAMPLES.values(), ids=SAMPLES)
def test_no_samples_outlive_their_conversation(models: Models, repository: Path, size: float):
    signs = np.sign(np.random.default_rng(1).standard_normal((FRAMES, 1920)))
    for index, frame in enumerate((signs * size).astype(np.float32)):
        one(models.encoder, ROW, {"pcm": frame}, start=index == 0)
    assert_as_fresh(models, repository, "encoder")


@pytest.mark.parametrize("size", SAMPLES.values(), ids=SAMPLES)
def test_no_embeddings_outlive_their_conversation(models: Models, repository: Path, size: float):
    signs = np.sign(np.random.default_rng(2).standard_normal((3, models.dim)))
    step = {"columns": np.ones((1, 17), np.int64), **sampler(3)}
    one(models.temporal, ROW, {**step, "embeddings": (signs * size).astype(np.float32)}, start=True)
    one(models.temporal, ROW, step)
    assert_as_fresh(models, repository, "temporal")


def test_loud_samples_are_clamped(models: Models, repository: Path):
    """A conversation goes on after them as after samples of MAX_SAMPLE, frame by frame."""
    signs = np.sign(np.random.default_rng(3).standard_normal(1920)).astype(np.float32)
    speech = requests(models, "encoder")
    answers = []
    for size in (3e38, MAX_SAMPLE):
        one(models.encoder, ROW, {"pcm": (signs * size).astype(np.float32)}, start=True)
        answers.append([one(models.encoder, ROW, frame)["codes"] for frame in speech])
    np.testing.assert_array_equal(answers[0], answers[1])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(models: Models, value: float):
    pcm = np.zeros(1920, np.float32)
    pcm[7] = value
    with pytest.raises(BadInputError, match="pcm: samples must be finite"):
        one(models.encoder, ROW, {"pcm": pcm}, start=True)
    embeddings = np.zeros((2, models.dim), np.float32)
    embeddings[1, 3] = value
    with pytest.raises(BadInputError, match="embeddings: values must be finite"):
        one(models.temporal, ROW, {**requests(models, "temporal")[0], "embeddings": embeddings}, start=True)
