"""The random checkpoint is one that can be built, and its numbers are as random as its size needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loadtest.bench.models.random_checkpoint import VOICE_FRAMES, VOICES, is_complete, write_random_checkpoint
from model_repository.checkpoint.folder import Checkpoint
from model_repository.checkpoint.layout import lm_shapes, mimi_shapes
from model_repository.synthetic.random_weights import deviation, random_weights
from model_repository.synthetic.tiny import TINY_CONFIG

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("random") / "checkpoint"
    assert not is_complete(out)
    write_random_checkpoint(out, TINY_CONFIG)
    assert is_complete(out)
    return out


def test_every_tensor_has_its_shape_and_deviation(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    for name, shape in lm_shapes(checkpoint.geometry.lm).items():
        found = checkpoint.lm.read(name)
        assert found.shape == shape
        assert np.isfinite(found).all()
        if len(shape) == 2:
            assert float(found.std()) == pytest.approx(deviation(name, shape), rel=0.12), name
            assert abs(float(found.mean())) < 4 * float(found.std()) / found.size**0.5 + 0.2 * deviation(name, shape)


def test_no_two_rows_of_a_matrix_are_alike(folder: Path) -> None:
    matrix = Checkpoint.open(folder).lm.read("text_linear.weight")
    alike = np.corrcoef(matrix) - np.eye(len(matrix))
    assert np.abs(alike).max() < 0.9
    assert len(np.unique(np.abs(matrix).sum(axis=1))) == len(matrix)


def test_mimi_and_norms_are_those_of_a_tiny_checkpoint(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    for name, expected in random_weights(mimi_shapes(checkpoint.geometry.mimi), 0).items():
        np.testing.assert_array_equal(checkpoint.mimi.read(name), expected)
    alpha = random_weights({"out_norm.alpha": (1, 1, 64)}, 0)["out_norm.alpha"]
    np.testing.assert_allclose(checkpoint.lm.read("out_norm.alpha"), alpha, rtol=2**-8)


def test_voices_end_in_one_whole_column_and_one_of_which_the_delayed_streams_are_known(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    assert tuple(checkpoint.voices) == VOICES
    for name in VOICES:
        voice = checkpoint.voice(name)
        assert voice.frames == VOICE_FRAMES
        assert (voice.columns[0] >= 0).all()
        np.testing.assert_array_equal(voice.columns[1] >= 0, np.array(checkpoint.geometry.lm.delays) > 0)


def test_the_same_seed_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        write_random_checkpoint(tmp_path / str(seed), TINY_CONFIG, seed)
    files = [file.relative_to(folder) for file in sorted(folder.rglob("*")) if file.is_file()]
    assert len(files) == 4 + len(VOICES)
    for file in files:
        assert (tmp_path / "0" / file).read_bytes() == (folder / file).read_bytes()
    assert (tmp_path / "1" / "model.safetensors").read_bytes() != (folder / "model.safetensors").read_bytes()
