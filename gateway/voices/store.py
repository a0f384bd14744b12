"""Putting voices into a repository's folder and taking them out, whoever else does so or reads them meanwhile.

A voice is one file and there is no index, so that adding and removing are one step each: a name that appears in the
folder with its whole content behind it, or that is gone from it.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from gateway.errors import NameNotAllowed, NameTaken, RepositoryError, UnknownVoice
from gateway.voices.preset import SUFFIX, VoicePreset, serialise
from gateway.voices.registry import NAME, Voices

# What answers call a voice that came with the request.
RESERVED = ("voice_audio", "recording")


def check_free(voices: Voices, name: str, force: bool = False) -> None:
    """Whether `add` would take the name. Raises NameNotAllowed, NameTaken, or RepositoryError if the folder cannot be
    written.
    """
    if not NAME.fullmatch(name):
        raise NameNotAllowed(f"voice name {name[:80]!r} must be 1 to 64 letters, digits, '_' or '-'")
    if name in RESERVED:
        raise NameNotAllowed(f"voice name {name!r} is what a recording sent with a request is called")
    if not force and os.path.lexists(_path(voices, name)):
        raise NameTaken(name)
    # A folder that is not there yet will be made.
    where = voices.folder if voices.folder.exists() else voices.folder.parent
    if not os.access(where, os.W_OK | os.X_OK):
        raise RepositoryError(f"{where} cannot be written: Permission denied")


def add(voices: Voices, name: str, preset: VoicePreset, source: str, force: bool = False) -> None:
    """Write a voice, whole or not at all; of two at once under one name the second is refused.

    Args:
        voices: where to.
        name: how requests will call it.
        preset: the voice.
        source: what it was made from, in a word or two.
        force: replace a voice of that name, also one built in.

    Raises what `check_free` raises.
    """
    check_free(voices, name, force)
    path = _path(voices, name)
    unfinished = path.with_name(f".{name}.{secrets.token_hex(8)}")
    try:
        voices.folder.mkdir(exist_ok=True)
        try:
            with unfinished.open("xb") as file:
                file.write(serialise(preset, source))
                file.flush()
                os.fsync(file.fileno())
            if force:
                unfinished.replace(path)
            else:
                _take_name(path, unfinished)
        finally:
            unfinished.unlink(missing_ok=True)
    except FileExistsError:
        raise NameTaken(name) from None
    except OSError as error:
        raise RepositoryError(f"{path} cannot be written: {error.strerror}") from None


def remove(voices: Voices, name: str, force: bool = False) -> None:
    """Take a voice out; conversations that have begun with it go on. A file that cannot be used can be removed too.

    Raises UnknownVoice, NameNotAllowed for a built-in voice unless `force` and for the last one, or RepositoryError.
    """
    usable, broken = voices.now(), {voice.name for voice in voices.broken()}
    if name not in usable and name not in broken:
        raise UnknownVoice(name, usable)
    if name in usable and len(usable) == 1:
        raise NameNotAllowed(f"{name} is the only voice; add another one before it is removed")
    if name in voices.built_in and not force and not (name in usable and usable[name].origin == "added"):
        raise NameNotAllowed(f"{name} is a built-in voice; --force removes it, and only building brings it back")
    try:
        _path(voices, name).unlink()
    except FileNotFoundError:
        raise UnknownVoice(name, [other for other in usable if other != name]) from None
    except OSError as error:
        raise RepositoryError(f"{_path(voices, name)} cannot be removed: {error.strerror}") from None


def _take_name(path: Path, unfinished: Path) -> None:
    """Let the file be called `path`. Unlike renaming it, this raises FileExistsError where something is."""
    try:
        path.hardlink_to(unfinished)
    except FileExistsError:
        raise
    except OSError:
        # Buckets and some network shares have no hard links; an empty file holds the name for a moment.
        path.open("xb").close()
        unfinished.replace(path)


def _path(voices: Voices, name: str) -> Path:
    return voices.folder / f"{name}{SUFFIX}"
