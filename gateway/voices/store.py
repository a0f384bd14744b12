"""Add voice files to a repository's voices folder and remove them, while other processes read and write the folder.

A voice is one file and there is no index. Adding and removing are atomic: a file appears under its name with its whole
content, or disappears.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from gateway.errors import NameNotAllowed, NameTaken, RepositoryError, UnknownVoice
from gateway.voices.preset import SUFFIX, VoicePreset, serialise
from gateway.voices.registry import NAME, VoiceRegistry

# In responses, names of the voice of a conversation whose request carried a recording.
RESERVED = ("voice_audio", "recording")


class VoiceStore:
    """Writes the voices folder that `registry` reads."""

    def __init__(self, registry: VoiceRegistry) -> None:
        self._registry = registry
        self._folder = registry.folder

    def check_free(self, name: str, force: bool = False) -> None:
        """Check that `add` would accept the name.

        Raises:
            NameNotAllowed: the name is malformed or reserved.
            NameTaken: a voice has this name, and `force` is not set.
            RepositoryError: the folder is not writable.
        """
        if not NAME.fullmatch(name):
            raise NameNotAllowed(f"voice name {name[:80]!r} must be 1 to 64 letters, digits, '_' or '-'")
        if name in RESERVED:
            raise NameNotAllowed(f"voice name {name!r} is reserved for the voice of a recording in a request")
        if not force and os.path.lexists(self._path(name)):
            raise NameTaken(name)
        # `add` creates a missing folder.
        where = self._folder if self._folder.exists() else self._folder.parent
        if not os.access(where, os.W_OK | os.X_OK):
            raise RepositoryError(f"{where} cannot be written: Permission denied")

    def add(self, name: str, preset: VoicePreset, source: str, force: bool = False) -> None:
        """Write a voice file atomically. Of two concurrent calls with one name, the second is refused.

        Args:
            name: name of the voice in requests.
            preset: the voice.
            source: what the voice was made from, in one or two words.
            force: replace a voice of that name, also a built-in one.

        Raises what `check_free` raises.
        """
        self.check_free(name, force)
        path = self._path(name)
        unfinished = path.with_name(f".{name}.{secrets.token_hex(8)}")
        try:
            self._folder.mkdir(exist_ok=True)
            try:
                with unfinished.open("xb") as file:
                    file.write(serialise(preset, source))
                    file.flush()
                    os.fsync(file.fileno())
                if force:
                    unfinished.replace(path)
                else:
                    _rename_to_free_name(unfinished, path)
            finally:
                unfinished.unlink(missing_ok=True)
        except FileExistsError:
            raise NameTaken(name) from None
        except OSError as error:
            raise RepositoryError(f"{path} cannot be written: {error.strerror}") from None

    def remove(self, name: str, force: bool = False) -> None:
        """Delete a voice file, valid or not. Running conversations keep the voice.

        Raises:
            UnknownVoice: there is no such file.
            NameNotAllowed: the voice is built in and `force` is not set, or it is the only valid one.
            RepositoryError: the file cannot be deleted.
        """
        usable, broken = self._registry.available(), {voice.name for voice in self._registry.broken()}
        if name not in usable and name not in broken:
            raise UnknownVoice(name, usable)
        if name in usable and len(usable) == 1:
            raise NameNotAllowed(f"{name} is the only voice; add another one before removing it")
        if name in self._registry.built_in and not force and not (name in usable and usable[name].origin == "added"):
            raise NameNotAllowed(f"{name} is a built-in voice; --force removes it, only a new build restores it")
        try:
            self._path(name).unlink()
        except FileNotFoundError:
            raise UnknownVoice(name, [other for other in usable if other != name]) from None
        except OSError as error:
            raise RepositoryError(f"{self._path(name)} cannot be removed: {error.strerror}") from None

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{SUFFIX}"


def _rename_to_free_name(source: Path, target: Path) -> None:
    """Give the file a second name, `target`. Unlike a rename, this raises FileExistsError if `target` exists."""
    try:
        target.hardlink_to(source)
    except FileExistsError:
        raise
    except OSError:
        # Object stores and some network file systems have no hard links: reserve the name with an empty file.
        target.open("xb").close()
        source.replace(target)
