"""Voice files: both formats are read back, and other files are rejected in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from gateway.errors import RepositoryError
from gateway.manifest import Manifest
from gateway.voices import preset
from gateway.voices.preset import VoicePreset, read, serialise

Make = Callable[..., VoicePreset]


@pytest.fixture
def file(models: Path) -> Path:
    """Of a built-in voice of 5 frames."""
    return models / "voices" / "NATF0.safetensors"


def test_a_voice_of_embeddings_has_embeddings_and_last_columns(file: Path, manifest: Manifest):
    voice, source = read(file, manifest)
    assert (voice.embeddings.shape, voice.embeddings.dtype) == ((4, 32), np.float32)
    assert (voice.columns.shape, voice.columns.dtype) == ((2, 17), np.int64)
    assert (voice.frames, source) == (5, "")


def test_a_voice_of_tokens_has_all_its_columns(make_preset: Make, manifest: Manifest, tmp_path: Path):
    made = make_preset(frames=40)
    (tmp_path / "ANA.safetensors").write_bytes(serialise(made, "recording"))
    voice, source = read(tmp_path / "ANA.safetensors", manifest)
    assert voice.embeddings.shape == (0, 32)
    assert np.array_equal(voice.columns, made.columns)
    assert voice.columns.shape == (41, 17)
    assert (voice.frames, source) == (40, "recording")


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 20])
def test_a_truncated_file_is_rejected(file: Path, manifest: Manifest, keep: int):
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(RepositoryError, match=r"^voices/NATF0\.safetensors cannot be read: ") as raised:
        read(file, manifest)
    assert "\n" not in str(raised.value)


def test_other_data_is_rejected(file: Path, manifest: Manifest):
    for content in (b"not tensors", b"\xff" * 100, (8).to_bytes(8, "little") + b'{"a": 1}'):
        file.write_bytes(content)
        with pytest.raises(RepositoryError, match=r"^voices/NATF0\.safetensors cannot be read: "):
            read(file, manifest)


def test_another_data_type_is_rejected(file: Path, manifest: Manifest):
    header = json.dumps({"embeddings": {"dtype": "BF16", "shape": [4, 32], "data_offsets": [0, 256]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(256))
    with pytest.raises(RepositoryError, match=r"^voices/NATF0\.safetensors"):
        read(file, manifest)


def test_a_folder_or_a_huge_file_is_rejected(file: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(preset, "MAX_FILE_BYTES", 100)
    with pytest.raises(RepositoryError, match="bytes exceed the limit of"):
        read(file, manifest)
    file.unlink()
    file.mkdir()
    monkeypatch.setattr(preset, "MAX_FILE_BYTES", 10**6)
    with pytest.raises(RepositoryError, match="cannot be read: Is a directory"):
        read(file, manifest)


def columns(**changed: Any) -> np.ndarray:
    """Return the tensors of a valid voice, with changes."""
    fit = np.full((changed.pop("count", 2), 17), 7)
    fit[-1, [0, 1, 9]] = -1
    for where, value in changed.items():
        row, stream = map(int, where.removeprefix("at_").split("_"))
        fit[row, stream] = value
    return fit


OUTSIDE = "columns contain tokens outside the vocabularies"


@pytest.mark.parametrize(
    ("embeddings", "tokens", "error_text"),
    [
        (
            np.zeros((4, 64), np.float32),
            columns(),
            r"embeddings should be float32 \[any, 32\], found float32 \[4, 64\]",
        ),
        (np.zeros((4, 32), np.float64), columns(), r"embeddings should be float32 \[any, 32\], found float64"),
        (np.full((4, 32), np.nan, np.float32), columns(), "embeddings contain NaN or infinity"),
        (None, columns(), r"embeddings should be float32 \[any, 32\], found nothing"),
        (np.zeros((4, 32), np.float32), None, r"columns should be int64 \[any, 17\], found nothing"),
        (
            np.zeros((4, 32), np.float32),
            columns()[:, :16],
            r"columns should be int64 \[any, 17\], found int64 \[2, 16\]",
        ),
        (np.zeros((4, 32), np.float32), columns()[1:], "expected at least 2 columns, found 1"),
        (np.zeros((0, 32), np.float32), columns(at_0_0=401), OUTSIDE),
        (np.zeros((0, 32), np.float32), columns(at_0_3=2049), OUTSIDE),
        (np.zeros((0, 32), np.float32), columns(at_0_1=-1), OUTSIDE),
        (np.zeros((0, 32), np.float32), columns(at_1_2=-1), OUTSIDE),
        (np.zeros((0, 32), np.float32), columns(at_1_9=5), OUTSIDE),
    ],
)
def test_presets_that_do_not_fit_the_models_are_rejected(
    file: Path, manifest: Manifest, embeddings: np.ndarray | None, tokens: np.ndarray | None, error_text: str
):
    given = {"embeddings": embeddings, "columns": tokens}
    save_file({name: np.ascontiguousarray(array) for name, array in given.items() if array is not None}, file)
    with pytest.raises(RepositoryError, match=error_text):
        read(file, manifest)


def test_initial_tokens_are_the_largest_allowed(file: Path, manifest: Manifest):
    tokens = columns(count=3, at_0_0=400, at_0_1=2048)
    save_file({"embeddings": np.zeros((0, 32), np.float32), "columns": tokens}, file)
    assert read(file, manifest)[0].frames == 2
