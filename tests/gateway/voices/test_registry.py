"""The registry follows changes of the folder at once."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.errors import RepositoryError, UnknownVoice
from gateway.manifest import Manifest
from gateway.voices.preset import VoicePreset, serialise
from gateway.voices.registry import VoiceRegistry

Make = Callable[..., VoicePreset]


@pytest.fixture
def voices(manifest: Manifest) -> VoiceRegistry:
    return VoiceRegistry(manifest)


@pytest.fixture
def put(voices: VoiceRegistry, make_preset: Make) -> Callable[..., Path]:
    def write(name: str, **preset: int) -> Path:
        path = voices.folder / f"{name}.safetensors"
        path.write_bytes(serialise(make_preset(**preset), "recording"))
        return path

    return write


def test_a_voice_is_read_once_while_its_file_stays_the_same(voices: VoiceRegistry):
    assert voices.require("NATF0") is voices.require("NATF0")


def test_a_new_file_is_a_new_voice(voices: VoiceRegistry, put: Callable[..., Path]):
    assert list(voices.available()) == ["NATF0", "NATM1"]
    put("ANA", frames=50)
    assert list(voices.available()) == ["NATF0", "NATM1", "ANA"]
    ana = voices.require("ANA")
    assert (ana.frames, ana.origin, ana.source) == (50, "added", "recording")
    assert {voice.origin for name, voice in voices.available().items() if name != "ANA"} == {"built-in"}


def test_a_removed_file_is_no_voice_but_read_voices_stay(voices: VoiceRegistry):
    before = voices.require("NATF0").preset
    embeddings = before.embeddings.copy()
    (voices.folder / "NATF0.safetensors").unlink()
    with pytest.raises(UnknownVoice, match="there are: NATM1"):
        voices.require("NATF0")
    assert (before.embeddings == embeddings).all()


def test_a_replaced_file_is_read_again(voices: VoiceRegistry, put: Callable[..., Path]):
    put("ANA", seed=1)
    first = voices.require("ANA")
    # Same size, and the same time of change: the file is another all the same.
    stat = (voices.folder / "ANA.safetensors").stat()
    new = put("NEW", seed=2)
    os.utime(new, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    new.replace(voices.folder / "ANA.safetensors")
    assert (voices.require("ANA").preset.columns != first.preset.columns).any()
    assert list(voices.available()) == ["NATF0", "NATM1", "ANA"]


def test_a_file_without_origin_is_added_unless_it_is_in_the_manifest(voices: VoiceRegistry):
    shutil.copy(voices.folder / "NATF0.safetensors", voices.folder / "COPY.safetensors")
    assert voices.require("COPY").origin == "added"


def test_a_built_in_voice_that_was_replaced_counts_as_added(voices: VoiceRegistry, put: Callable[..., Path]):
    put("NATF0")
    assert voices.require("NATF0").origin == "added"


@pytest.mark.parametrize("name", ["my voice", "ä", ".hidden", "x" * 65, "a.b", ""])
def test_files_with_other_names_are_ignored(voices: VoiceRegistry, put: Callable[..., Path], name: str):
    put(name)
    assert list(voices.available()) == ["NATF0", "NATM1"]
    assert voices.broken() == []


def test_other_files_are_ignored(voices: VoiceRegistry):
    (voices.folder / "README").write_text("ours")
    (voices.folder / "NATF0.pt").write_bytes(b"")
    assert list(voices.available()) == ["NATF0", "NATM1"]
    assert voices.broken() == []


@pytest.mark.parametrize("name", ["NATX", "", "../voices/NATF0", "NATF0.safetensors", "/etc/passwd"])
def test_only_names_of_files_in_the_folder_are_voices(voices: VoiceRegistry, name: str):
    with pytest.raises(UnknownVoice, match="there are: NATF0, NATM1"):
        voices.require(name)


def test_a_broken_file_is_logged_once_and_does_not_affect_others(
    voices: VoiceRegistry, put: Callable[..., Path], caplog: pytest.LogCaptureFixture
):
    (voices.folder / "NATF0.safetensors").write_bytes(b"nothing")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert list(voices.available()) == ["NATM1"]
    assert caplog.text.count("voices/NATF0.safetensors cannot be read") == 1
    with pytest.raises(RepositoryError, match=r"^voices/NATF0\.safetensors cannot be read: "):
        voices.require("NATF0")
    assert [one.name for one in voices.broken()] == ["NATF0"]
    put("NATF0")
    assert list(voices.available()) == ["NATM1", "NATF0"]
    assert voices.broken() == []


def test_without_a_folder_there_are_no_voices(voices: VoiceRegistry):
    shutil.rmtree(voices.folder)
    assert dict(voices.available()) == {}
    with pytest.raises(UnknownVoice, match="there are: none"):
        voices.require("NATF0")


def test_a_temporarily_unreadable_folder_keeps_its_voices(
    voices: VoiceRegistry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    voices.available()

    def too_many_files(_: Path) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "scandir", too_many_files)
    assert list(voices.available()) == ["NATF0", "NATM1"]
    assert ": Too many open files" in caplog.text
