"""Built repositories, whole and broken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from gateway.errors import RepositoryError, UnknownVoice
from gateway.manifest import Manifest

Write = Callable[[], Path]


def test_the_geometry_is_what_the_file_says(manifest: Manifest):
    assert (manifest.slots, manifest.dim, manifest.card, manifest.text_card) == (2, 32, 2048, 400)
    assert manifest.delays == (0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1)
    assert manifest.sampling.audio_top_k == 250
    assert manifest.tokenizer_path.is_file()


def test_a_voice_has_its_embeddings_and_its_last_columns(manifest: Manifest):
    voice = manifest.load_voice("NATM1")
    assert (voice.embeddings.shape, voice.embeddings.dtype) == ((6, 32), np.float32)
    assert (voice.columns.shape, voice.columns.dtype) == ((2, 17), np.int64)


def test_a_voice_is_read_once(manifest: Manifest, models: Path):
    first = manifest.load_voice("NATF0")
    (models / "voices" / "NATF0.safetensors").unlink()
    assert manifest.load_voice("NATF0") is first


@pytest.mark.parametrize("name", ["NATX", "", "../voices/NATF0", "NATF0.safetensors", "/etc/passwd"])
def test_only_names_in_the_manifest_are_voices(manifest: Manifest, name: str):
    with pytest.raises(UnknownVoice, match="there are: NATF0, NATM1"):
        manifest.load_voice(name)


def test_a_folder_without_a_manifest_is_not_a_repository(tmp_path: Path):
    with pytest.raises(RepositoryError, match=r"is not a built repository: it has no manifest\.json"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "one"}', "\x00"])
def test_a_manifest_that_cannot_be_read_says_so_in_one_line(models: Path, text: str):
    (models / "manifest.json").write_text(text)
    with pytest.raises(RepositoryError, match=r"manifest\.json cannot be read: ") as told:
        Manifest.load(models)
    assert "\n" not in str(told.value)


def test_a_missing_key_is_named(write_repository: Write, manifest_json: dict[str, Any]):
    del manifest_json["sampling"]["text_top_k"]
    with pytest.raises(RepositoryError, match=r"sampling\.text_top_k: Field required"):
        Manifest.load(write_repository())


def test_another_format_is_refused(write_repository: Write, manifest_json: dict[str, Any]):
    manifest_json["format"] = 2
    with pytest.raises(RepositoryError, match="has format 2; this version reads format 1"):
        Manifest.load(write_repository())


@pytest.mark.parametrize("name", ["tokenizer.model", "voices/NATM1.safetensors"])
def test_a_missing_file_is_named(models: Path, name: str):
    (models / name).unlink()
    with pytest.raises(RepositoryError, match=f"is incomplete: {name} is missing"):
        Manifest.load(models)


def test_a_voice_file_that_is_none_is_refused(manifest: Manifest, models: Path):
    (models / "voices" / "NATF0.safetensors").write_bytes(b"not tensors")
    with pytest.raises(RepositoryError, match=r"NATF0\.safetensors cannot be read"):
        manifest.load_voice("NATF0")


def test_a_voice_of_another_geometry_is_refused(manifest: Manifest, models: Path):
    tensors = {"embeddings": np.zeros((4, 64), np.float32), "columns": np.zeros((2, 17), np.int64)}
    save_file(tensors, models / "voices" / "NATF0.safetensors")
    with pytest.raises(RepositoryError, match=r"embeddings should be float32 \[4, 32\], found float32 \[4, 64\]"):
        manifest.load_voice("NATF0")


def test_a_voice_without_a_tensor_is_refused(manifest: Manifest, models: Path):
    save_file({"embeddings": np.zeros((4, 32), np.float32)}, models / "voices" / "NATF0.safetensors")
    with pytest.raises(RepositoryError, match=r"columns should be int64 \[2, 17\], found nothing"):
        manifest.load_voice("NATF0")
