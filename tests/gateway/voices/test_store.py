"""Voices put into a folder and taken out: whole or not at all, and none lost."""

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
from gateway.voices import store as shelf
from gateway.voices.preset import VoicePreset
from gateway.voices.registry import NAME, Voices
from model_repository.checkpoint.voice import check_voice_name
from model_repository.errors import CheckpointError

Make = Callable[..., VoicePreset]


@pytest.fixture
def voices(manifest: Manifest) -> Voices:
    return manifest.voices


def files(voices: Voices) -> list[str]:
    return sorted(path.name for path in voices.folder.iterdir())


BUILT_IN = ["NATF0.safetensors", "NATM1.safetensors"]


def test_what_was_added_can_be_used(voices: Voices, make_preset: Make):
    made = make_preset()
    shelf.add(voices, "ANA", made, "clip")
    ana = voices.require("ANA")
    assert np.array_equal(ana.preset.columns, made.columns)
    assert (ana.origin, ana.source) == ("added", "clip")
    assert files(voices) == ["ANA.safetensors", *BUILT_IN]


def test_a_server_that_runs_as_somebody_else_can_read_it(voices: Voices, make_preset: Make):
    umask = os.umask(0o022)
    try:
        shelf.add(voices, "ANA", make_preset(), "clip")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((voices.folder / "ANA.safetensors").stat().st_mode) == 0o644


def test_a_name_is_taken_until_force_is_used(voices: Voices, make_preset: Make):
    shelf.add(voices, "ANA", make_preset(seed=1), "clip")
    with pytest.raises(NameTaken, match="there is a voice named ANA already; --force replaces it"):
        shelf.add(voices, "ANA", make_preset(seed=2), "clip")
    assert np.array_equal(voices.require("ANA").preset.columns, make_preset(seed=1).columns)
    shelf.add(voices, "ANA", make_preset(seed=2), "clip", force=True)
    assert np.array_equal(voices.require("ANA").preset.columns, make_preset(seed=2).columns)
    assert files(voices) == ["ANA.safetensors", *BUILT_IN]


def test_a_file_that_cannot_be_used_takes_its_name_too(voices: Voices, make_preset: Make):
    (voices.folder / "ANA.safetensors").write_bytes(b"")
    with pytest.raises(NameTaken):
        shelf.add(voices, "ANA", make_preset(), "clip")


@pytest.mark.parametrize("name", ["", "a b", "../ANA", "a/b", "ANA.pt", "ä", ".ANA", "x" * 65, "ANA\n"])
def test_names_are_those_that_a_checkpoint_s_voice_may_have(voices: Voices, make_preset: Make, name: str):
    with pytest.raises(NameNotAllowed, match="must be 1 to 64 letters, digits, '_' or '-'"):
        shelf.add(voices, name, make_preset(), "clip")
    with pytest.raises(CheckpointError):
        check_voice_name(name)
    assert files(voices) == BUILT_IN
    for fine in ("a", "Ana_2-x", "x" * 64):
        assert NAME.fullmatch(check_voice_name(fine))


@pytest.mark.parametrize("name", ["voice_audio", "recording"])
def test_what_answers_call_a_recording_is_no_name(voices: Voices, make_preset: Make, name: str):
    with pytest.raises(NameNotAllowed, match="is what a recording sent with a request is called"):
        shelf.add(voices, name, make_preset(), "clip")


@pytest.mark.parametrize("force", [False, True])
def test_what_cannot_be_written_leaves_nothing_behind(
    voices: Voices, make_preset: Make, monkeypatch: pytest.MonkeyPatch, force: bool
):
    if force:
        shelf.add(voices, "ANA", make_preset(seed=1), "clip")
    before = files(voices)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RepositoryError, match=r"ANA\.safetensors cannot be written: No space left on device"):
        shelf.add(voices, "ANA", make_preset(seed=2), "clip", force)
    assert files(voices) == before
    if force:
        assert np.array_equal(voices.require("ANA").preset.columns, make_preset(seed=1).columns)


def test_a_folder_without_hard_links_will_do(voices: Voices, make_preset: Make, monkeypatch: pytest.MonkeyPatch):
    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", unsupported)
    shelf.add(voices, "ANA", make_preset(seed=1), "clip")
    with pytest.raises(NameTaken):
        shelf.add(voices, "ANA", make_preset(seed=2), "clip")
    assert np.array_equal(voices.require("ANA").preset.columns, make_preset(seed=1).columns)
    assert files(voices) == ["ANA.safetensors", *BUILT_IN]


def test_a_folder_that_cannot_be_written_is_known_beforehand(voices: Voices, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(RepositoryError, match="voices cannot be written: Permission denied"):
        shelf.check_free(voices, "ANA")


def test_a_folder_that_is_not_there_is_made(voices: Voices, make_preset: Make):
    for file in voices.folder.iterdir():
        file.unlink()
    voices.folder.rmdir()
    shelf.add(voices, "ANA", make_preset(), "clip")
    assert list(voices.now()) == ["ANA"]


def test_many_adds_at_once_lose_none(models: Path, make_preset: Make):
    def add(number: int) -> None:
        shelf.add(Manifest.load(models).voices, f"V{number}", make_preset(seed=number), "clip")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(24)))
    voices = Manifest.load(models).voices.now()
    for number in range(24):
        assert np.array_equal(voices[f"V{number}"].preset.columns, make_preset(seed=number).columns)


def test_of_many_adds_under_one_name_one_wins(voices: Voices, make_preset: Make):
    def add(number: int) -> int | None:
        try:
            shelf.add(voices, "ANA", make_preset(seed=number), "clip")
        except NameTaken:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        won = [number for number in pool.map(add, range(16)) if number is not None]
    assert len(won) == 1
    assert np.array_equal(voices.require("ANA").preset.columns, make_preset(seed=won[0]).columns)
    assert files(voices) == ["ANA.safetensors", *BUILT_IN]


def test_who_looks_while_a_voice_is_replaced_sees_it_whole(models: Path, make_preset: Make):
    """Each of two sizes, never a part, never nothing."""
    writer, reader = Manifest.load(models).voices, Manifest.load(models).voices
    shelf.add(writer, "ANA", make_preset(frames=40), "clip")
    done = threading.Event()

    def replace() -> None:
        for turn in range(60):
            shelf.add(writer, "ANA", make_preset(frames=40 + 60 * (turn % 2)), "clip", force=True)
        done.set()

    seen = set()
    with ThreadPoolExecutor(1) as pool:
        replacing = pool.submit(replace)
        while not done.is_set() and not replacing.done():
            seen.add(reader.require("ANA").frames)
        replacing.result()
    assert seen <= {40, 100}
    assert reader.broken() == []


def test_an_added_voice_can_be_removed(voices: Voices, make_preset: Make):
    shelf.add(voices, "ANA", make_preset(), "clip")
    shelf.remove(voices, "ANA")
    assert files(voices) == BUILT_IN
    with pytest.raises(UnknownVoice, match="no voice named 'ANA'; there are: NATF0, NATM1"):
        shelf.remove(voices, "ANA")


def test_a_built_in_voice_is_removed_only_by_force(voices: Voices):
    with pytest.raises(NameNotAllowed, match="NATF0 is a built-in voice; --force removes it"):
        shelf.remove(voices, "NATF0")
    shelf.remove(voices, "NATF0", force=True)
    assert list(voices.now()) == ["NATM1"]


def test_what_replaced_a_built_in_voice_is_removed_as_any_other(voices: Voices, make_preset: Make):
    shelf.add(voices, "NATF0", make_preset(), "clip", force=True)
    shelf.remove(voices, "NATF0")
    assert list(voices.now()) == ["NATM1"]


def test_the_last_voice_stays(voices: Voices):
    shelf.remove(voices, "NATM1", force=True)
    with pytest.raises(NameNotAllowed, match="NATF0 is the only voice"):
        shelf.remove(voices, "NATF0", force=True)
    assert list(voices.now()) == ["NATF0"]


def test_a_broken_file_can_be_removed(voices: Voices):
    (voices.folder / "ANA.safetensors").write_bytes(b"")
    shelf.remove(voices, "ANA")
    assert files(voices) == BUILT_IN


@pytest.mark.parametrize("name", ["../manifest", "/etc/passwd", "", "NATF0.safetensors"])
def test_only_voices_can_be_removed(voices: Voices, name: str):
    with pytest.raises(GatewayError, match="no voice named"):
        shelf.remove(voices, name, force=True)
    assert files(voices) == BUILT_IN
