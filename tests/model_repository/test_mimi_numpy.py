"""The NumPy codec, by which others are judged, is itself the reference's: through its attention window and beyond."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from model_repository.checkpoint.folder import Checkpoint
from tests.model_repository.mimi_numpy import decode, encode

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "golden.npz"))


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint.open(GOLDEN / "checkpoint")


def test_codes_of_the_users_audio(golden: dict[str, np.ndarray], checkpoint: Checkpoint) -> None:
    pcm, rate = soundfile.read(GOLDEN / "user.wav", dtype="float32")
    assert rate == 24_000
    padded = np.zeros(50 * 1920, np.float32)
    padded[: len(pcm)] = pcm
    np.testing.assert_array_equal(encode(padded, checkpoint.mimi, checkpoint.geometry.mimi), golden["user_codes"])


def test_samples_of_the_agents_codes(golden: dict[str, np.ndarray], checkpoint: Checkpoint) -> None:
    pcm = decode(golden["out_tokens"][:, 1:9], checkpoint.mimi, checkpoint.geometry.mimi)
    np.testing.assert_allclose(pcm.reshape(50, 1920), golden["pcm"], atol=1e-5)
