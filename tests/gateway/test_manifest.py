"""Built repositories, whole and broken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import RepositoryError
from gateway.manifest import FORMAT, Manifest
from gateway.voices.registry import VoiceRegistry

Write = Callable[[], Path]


def test_the_geometry_is_read_from_the_file(manifest: Manifest):
    assert (manifest.slots, manifest.dim, manifest.card, manifest.text_card) == (2, 32, 2048, 400)
    assert manifest.delays == (0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1)
    assert manifest.sampling.audio_top_k == 250
    assert manifest.tokenizer_path.is_file()


def test_a_folder_without_a_manifest_is_not_a_repository(tmp_path: Path):
    with pytest.raises(RepositoryError, match=r"is not a built repository: it has no manifest\.json"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "one"}', "\x00"])
def test_an_unreadable_manifest_is_reported_in_one_line(models: Path, text: str):
    (models / "manifest.json").write_text(text)
    with pytest.raises(RepositoryError, match=r"manifest\.json cannot be read: ") as raised:
        Manifest.load(models)
    assert "\n" not in str(raised.value)


def test_a_missing_key_is_named(write_repository: Write, manifest_json: dict[str, Any]):
    del manifest_json["sampling"]["text_top_k"]
    with pytest.raises(RepositoryError, match=r"sampling\.text_top_k: Field required"):
        Manifest.load(write_repository())


def test_another_format_is_refused(write_repository: Write, manifest_json: dict[str, Any]):
    manifest_json["format"] = FORMAT + 1
    with pytest.raises(RepositoryError, match=f"has format {FORMAT + 1}; this version reads format {FORMAT}"):
        Manifest.load(write_repository())


def test_a_missing_tokenizer_is_named(models: Path):
    (models / "tokenizer.model").unlink()
    with pytest.raises(RepositoryError, match=r"is incomplete: tokenizer\.model is missing"):
        Manifest.load(models)


def test_a_voice_that_was_built_in_and_is_gone_is_no_hindrance(models: Path):
    (models / "voices" / "NATM1.safetensors").unlink()
    manifest = Manifest.load(models)
    assert list(VoiceRegistry(manifest).available()) == ["NATF0"]
    assert list(manifest.built_in) == ["NATF0", "NATM1"]
