"""A voice's embeddings and columns are those that the reference fed while it listened to the voice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from model_repository.checkpoint.folder import Checkpoint
from model_repository.checkpoint.geometry import Geometry
from model_repository.checkpoint.voices.voice import UNKNOWN, Voice
from model_repository.errors import CheckpointError

GOLDEN = Path(__file__).parents[2] / "golden"

LM = Geometry.from_config({"lm": {"dim": 4, "num_heads": 2}}).lm
DELAYED = [2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15, 16]


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / "golden.npz"))


def saved(frames: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings [frames - 1, 1, 1, 4] and a ring whose column c holds 100 * c + stream."""
    embeddings = np.arange(4 * (frames - 1), dtype=np.float32).reshape(-1, 1, 1, 4)
    return embeddings, (100 * np.arange(4)[None, None] + np.arange(17)[None, :, None])


def test_the_last_columns_are_the_ones_the_reference_fed(
    golden_checkpoint: Checkpoint, golden: dict[str, np.ndarray]
) -> None:
    voice = golden_checkpoint.voice("NATF0")
    assert voice.frames == len(golden["voice_codes"])
    np.testing.assert_array_equal(voice.columns[0], golden["model_input"][voice.frames - 1])
    np.testing.assert_array_equal(voice.columns[1, DELAYED], golden["model_input"][voice.frames, DELAYED])
    assert (voice.columns[1, [0, 1, 9]] == UNKNOWN).all()


def test_the_columns_are_the_grid_of_its_codes(golden_checkpoint: Checkpoint, golden: dict[str, np.ndarray]) -> None:
    voice, codes = golden_checkpoint.voice("NATF0"), golden["voice_codes"]
    assert voice.columns[0, 0] == 3
    assert voice.columns[0, 1] == codes[-1, 0]
    np.testing.assert_array_equal(voice.columns[0, 2:9], codes[-2, 1:])
    np.testing.assert_array_equal(voice.columns[1, 2:9], codes[-1, 1:])


def test_its_embeddings_are_the_sums_over_the_columns_before(
    golden_checkpoint: Checkpoint, golden: dict[str, np.ndarray]
) -> None:
    lm, voice = golden_checkpoint.lm, golden_checkpoint.voice("NATF0")
    columns = golden["model_input"][: voice.frames - 1]
    total = lm.read("emb.0.weight")[columns[:, 1]]
    for stream in range(2, 17):
        total = total + lm.read(f"emb.{stream - 1}.weight")[columns[:, stream]]
    np.testing.assert_array_equal(voice.embeddings, total + lm.read("text_emb.weight")[columns[:, 0]])


@pytest.mark.parametrize("frames", [2, 4, 5, 6, 7, 51])
def test_columns_are_found_at_their_place_in_the_ring(frames: int) -> None:
    embeddings, cache = saved(frames)
    voice = Voice.from_cache("A", embeddings, cache, LM)
    assert voice.frames == frames
    np.testing.assert_array_equal(voice.columns[0], 100 * ((frames - 1) % 4) + np.arange(17))
    np.testing.assert_array_equal(voice.columns[1, DELAYED], 100 * (frames % 4) + np.array(DELAYED))
    np.testing.assert_array_equal(voice.embeddings, embeddings[:, 0, 0])


def test_stale_tokens_of_the_ring_do_not_matter() -> None:
    embeddings, cache = saved(5)
    cache[0, :, 2:] = -2
    cache[0, [0, 1, 9], 1] = -2
    assert (Voice.from_cache("A", embeddings, cache, LM).columns[1, [0, 1, 9]] == UNKNOWN).all()


def test_it_survives_saving_and_loading(tmp_path: Path) -> None:
    voice = Voice.from_cache("NATF0", *saved(), LM)
    voice.save(tmp_path / "NATF0.safetensors")
    loaded = Voice.load(tmp_path / "NATF0.safetensors")
    assert loaded.name == "NATF0"
    np.testing.assert_array_equal(loaded.embeddings, voice.embeddings)
    np.testing.assert_array_equal(loaded.columns, voice.columns)


@pytest.mark.parametrize("name", ["", "../NATF0", "/etc/passwd", "a/b", "a\\b", "..", "a.pt", "a\n", "ä", "a" * 65])
def test_a_name_that_could_lead_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"voice name .* must be 1 to 64 letters"):
        Voice.from_cache(name, *saved(), LM)


def test_embeddings_of_another_width_are_refused() -> None:
    embeddings, cache = saved()
    with pytest.raises(
        CheckpointError, match=r"voice A: 'embeddings' must be \[frames - 1, 1, 1, 4\], got \[4, 1, 1, 3\]"
    ):
        Voice.from_cache("A", embeddings[..., :3], cache, LM)
    with pytest.raises(CheckpointError, match="'embeddings' must be"):
        Voice.from_cache("A", embeddings[0], cache, LM)
    with pytest.raises(CheckpointError, match="embeddings must be float32"):
        Voice.from_cache("A", embeddings[:0], cache, LM)


@pytest.mark.parametrize("change", [lambda c: c[:, :16], lambda c: c[..., :3], lambda c: c[0], lambda c: c * 1.0])
def test_a_ring_of_another_shape_is_refused(change: Any) -> None:
    embeddings, cache = saved()
    with pytest.raises(CheckpointError, match=r"'cache' must be \[1, 17, 4\] of integers, got"):
        Voice.from_cache("A", embeddings, change(cache), LM)


@pytest.mark.parametrize(("stream", "token"), [(0, -1), (0, 32_001), (1, -2), (5, 2049), (16, 2**40)])
def test_tokens_outside_the_vocabularies_are_refused(stream: int, token: int) -> None:
    embeddings, cache = saved(5)
    cache[0, stream, 0] = token
    with pytest.raises(CheckpointError, match="outside the vocabularies"):
        Voice.from_cache("A", embeddings, cache, LM)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_embeddings_must_be_finite(value: float) -> None:
    embeddings, cache = saved()
    embeddings[2, 0, 0, 1] = value
    with pytest.raises(CheckpointError, match="voice A: embeddings contain NaN or infinity"):
        Voice.from_cache("A", embeddings, cache, LM)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"embeddings": np.ones((2, 4), np.float32)}, "must hold 'columns'"),
        ({"embeddings": np.ones((2, 4)), "columns": np.ones((2, 17), np.int64)}, "embeddings must be float32"),
        ({"embeddings": np.ones((2, 4), np.float32), "columns": np.ones((3, 17), np.int64)}, "columns must be int64"),
    ],
)
def test_a_file_that_holds_no_voice_is_refused(tmp_path: Path, arrays: Any, message: str) -> None:
    safetensors.numpy.save_file(arrays, tmp_path / "A.safetensors")
    with pytest.raises(CheckpointError, match=message):
        Voice.load(tmp_path / "A.safetensors")


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "A.safetensors").write_bytes(b"no header" * 8)
    with pytest.raises(CheckpointError, match=r"A\.safetensors: cannot be read as a voice"):
        Voice.load(tmp_path / "A.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read as a voice"):
        Voice.load(tmp_path / "B.safetensors")
