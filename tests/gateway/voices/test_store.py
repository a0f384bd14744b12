"""Voice files are added and removed atomically, also by concurrent processes."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from gateway.errors import GatewayError, NameNotAllowed, NameTaken, RepositoryError, UnknownVoice
from gateway.manifest import Manifest
from gateway.voices.preset import VoicePreset
from gateway.voices.registry import NAME, VoiceRegistry
from gateway.voices.store import VoiceStore
from model_repository.checkpoint.voices.voice import check_voice_name
from model_repository.errors import CheckpointError

Make = Callable[..., VoicePreset]


@pytest.fixture
def voices(manifest: Manifest) -> VoiceRegistry:
    return VoiceRegistry(manifest)


@pytest.fixture
def store(voices: VoiceRegistry) -> VoiceStore:
    return VoiceStore(voices)


def store_of(models: Path) -> VoiceStore:
    return VoiceStore(VoiceRegistry(Manifest.load(models)))


def files(voices: VoiceRegistry) -> list[str]:
    return sorted(path.name for path in voices.folder.iterdir())


BUILT_IN = ["NATF0.safetensors", "NATM1.safetensors"]


def test_an_added_voice_is_available(voices: VoiceRegistry, store: VoiceStore, make_preset: Make):
    made = make_preset()
    store.add("ANA", made, "recording")
    ana = voices.require("ANA")
    assert np.array_equal(ana.preset.columns, made.columns)
    assert (ana.origin, ana.source) == ("added", "recording")
    assert files(voices) == ["ANA.safetensors", *BUILT_IN]


def test_other_users_can_read_an_added_file(voices: VoiceRegistry, store: VoiceStore, make_preset: Make):
    umask = os.umask(0o022)
    try:
        store.add("ANA", make_preset(), "recording")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((voices.folder / "ANA.safetensors").stat().st_mode) == 0o644


def test_an_existing_name_is_rejected_without_force(voices: VoiceRegistry, store: VoiceStore, make_preset: Make):
    store.add("ANA", make_preset(seed=1), "recording")
    with pytest.raises(NameTaken, match="there is a voice named ANA already; --force replaces it"):
        store.add("ANA", make_preset(seed=2), "recording")
    assert np.array_equal(voices.require("ANA").preset.columns, make_preset(seed=1).columns)
    store.add("ANA", make_preset(seed=2), "recording", force=True)
    assert np.array_equal(voices.require("ANA").preset.columns, make_preset(seed=2).columns)
    assert files(voices) == ["ANA.safetensors", *BUILT_IN]


def test_the_name_of_an_invalid_file_is_taken(voices: VoiceRegistry, store: VoiceStore, make_preset: Make):
    (voices.folder / "ANA.safetensors").write_bytes(b"")
    with pytest.raises(NameTaken):
        store.add("ANA", make_preset(), "recording")


@pytest.mark.parametrize("name", ["", "a b", "../ANA", "a/b", "ANA.pt", "ä", ".ANA", "x" * 65, "ANA\n"])
def test_allowed_names_are_those_of_checkpoint_voices(
    voices: VoiceRegistry, store: VoiceStore, make_preset: Make, name: str
):
    with pytest.raises(NameNotAllowed, match="must be 1 to 64 letters, digits, '_' or '-'"):
        store.add(name, make_preset(), "recording")
    with pytest.raises(CheckpointError):
        check_voice_name(name)
    assert files(voices) == BUILT_IN
    for fine in ("a", "Ana_2-x", "x" * 64):
        assert NAME.fullmatch(check_voice_name(fine))


@pytest.mark.parametrize("name", ["voice_audio", "recording"])
def test_reserved_names_are_rejected(store: VoiceStore, make_preset: Make, name: str):
    with pytest.raises(NameNotAllowed, match="is reserved for the voice of a recording in a request"):
        store.add(name, make_preset(), "recording")


@pytest.mark.parametrize("force", [False, True])
def test_a_failed_write_leaves_no_file(
    voices: VoiceRegistry, store: VoiceStore, make_preset: Make, monkeypatch: pytest.MonkeyPatch, force: bool
):
    if force:
        store.add("ANA", make_preset(seed=1), "recording")
    before = files(voices)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RepositoryError, match=r"ANA\.safetensors cannot be written: No space left on device"):
        store.add("ANA", make_preset(seed=2), "recording", force)
    assert files(voices) == before
    if force:
        assert np.array_equal(voices.require("ANA").preset.columns, make_preset(seed=1).columns)


def test_add_works_without_hard_links(
    voices: VoiceRegistry, store: VoiceStore, make_preset: Make, monkeypatch: pytest.MonkeyPatch
):
    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", unsupported)
    store.add("ANA", make_preset(seed=1), "recording")
    with pytest.raises(NameTaken):
        store.add("ANA", make_preset(seed=2), "recording")
    assert np.array_equal(voices.require("ANA").preset.columns, make_preset(seed=1).columns)
    assert files(voices) == ["ANA.safetensors", *BUILT_IN]


def test_check_free_reports_a_folder_that_is_not_writable(store: VoiceStore, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(RepositoryError, match="voices cannot be written: Permission denied"):
        store.check_free("ANA")


def test_add_creates_a_missing_folder(voices: VoiceRegistry, store: VoiceStore, make_preset: Make):
    for file in voices.folder.iterdir():
        file.unlink()
    voices.folder.rmdir()
    store.add("ANA", make_preset(), "recording")
    assert list(voices.available()) == ["ANA"]


def test_concurrent_adds_of_different_names_all_succeed(models: Path, make_preset: Make):
    def add(number: int) -> None:
        store_of(models).add(f"V{number}", make_preset(seed=number), "recording")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(24)))
    voices = VoiceRegistry(Manifest.load(models)).available()
    for number in range(24):
        assert np.array_equal(voices[f"V{number}"].preset.columns, make_preset(seed=number).columns)


def test_concurrent_adds_of_one_name_succeed_once(voices: VoiceRegistry, store: VoiceStore, make_preset: Make):
    def add(number: int) -> int | None:
        try:
            store.add("ANA", make_preset(seed=number), "recording")
        except NameTaken:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        succeeded = [number for number in pool.map(add, range(16)) if number is not None]
    assert len(succeeded) == 1
    assert np.array_equal(voices.require("ANA").preset.columns, make_preset(seed=succeeded[0]).columns)
    assert files(voices) == ["ANA.safetensors", *BUILT_IN]


def test_reads_during_a_replacement_see_a_whole_file(models: Path, make_preset: Make):
    """Every read returns one of the two versions."""
    writer, reader = store_of(models), VoiceRegistry(Manifest.load(models))
    writer.add("ANA", make_preset(frames=40), "recording")
    done = threading.Event()

    def replace() -> None:
        for turn in range(60):
            writer.add("ANA", make_preset(frames=40 + 60 * (turn % 2)), "recording", force=True)
        done.set()

    seen = set()
    with ThreadPoolExecutor(1) as pool:
        replacing = pool.submit(replace)
        while not done.is_set() and not replacing.done():
            seen.add(reader.require("ANA").frames)
        replacing.result()
    assert seen <= {40, 100}
    assert reader.broken() == []


def test_an_added_voice_can_be_removed(voices: VoiceRegistry, store: VoiceStore, make_preset: Make):
    store.add("ANA", make_preset(), "recording")
    store.remove("ANA")
    assert files(voices) == BUILT_IN
    with pytest.raises(UnknownVoice, match="no voice named 'ANA'; there are: NATF0, NATM1"):
        store.remove("ANA")


def test_a_built_in_voice_is_removed_only_by_force(voices: VoiceRegistry, store: VoiceStore):
    with pytest.raises(NameNotAllowed, match="NATF0 is a built-in voice; --force removes it"):
        store.remove("NATF0")
    store.remove("NATF0", force=True)
    assert list(voices.available()) == ["NATM1"]


def test_the_replacement_of_a_built_in_voice_is_removed_without_force(
    voices: VoiceRegistry, store: VoiceStore, make_preset: Make
):
    store.add("NATF0", make_preset(), "recording", force=True)
    store.remove("NATF0")
    assert list(voices.available()) == ["NATM1"]


def test_the_only_voice_cannot_be_removed(voices: VoiceRegistry, store: VoiceStore):
    store.remove("NATM1", force=True)
    with pytest.raises(NameNotAllowed, match="NATF0 is the only voice"):
        store.remove("NATF0", force=True)
    assert list(voices.available()) == ["NATF0"]


def test_an_invalid_file_can_be_removed(voices: VoiceRegistry, store: VoiceStore):
    (voices.folder / "ANA.safetensors").write_bytes(b"")
    store.remove("ANA")
    assert files(voices) == BUILT_IN


@pytest.mark.parametrize("name", ["../manifest", "/etc/passwd", "", "NATF0.safetensors"])
def test_other_names_cannot_be_removed(voices: VoiceRegistry, store: VoiceStore, name: str):
    with pytest.raises(GatewayError, match="no voice named"):
        store.remove(name, force=True)
    assert files(voices) == BUILT_IN
