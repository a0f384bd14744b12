"""The voice presets of a built repository, read from its voices folder."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from gateway.errors import GatewayError, RepositoryError, UnknownVoice
from gateway.voices.preset import SUFFIX, Geometry, VoicePreset, read

logger = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

Origin = Literal["built-in", "added"]


class Repository(Geometry, Protocol):
    """A built repository. `Manifest` implements it."""

    @property
    def voices_folder(self) -> Path:
        """Folder of the voice files."""

    @property
    def built_in(self) -> Collection[str]:
        """Names of the voices that the build wrote."""


@dataclass(frozen=True, eq=False)
class Voice:
    """A valid voice file. `source`: what an added voice was made from, "" if the file does not name it."""

    name: str
    origin: Origin
    source: str
    preset: VoicePreset

    @property
    def frames(self) -> int:
        """Length in frames of 80 ms."""
        return self.preset.frames


@dataclass(frozen=True, eq=False)
class BrokenVoice:
    """An invalid voice file. `problem`: the reason, in one line."""

    name: str
    problem: str


# Inode, modification time in ns and size in bytes: at least one of them differs when a file has been written again.
_Stamp = tuple[int, int, int]


class VoiceRegistry:
    """The voices in the files NAME.safetensors of a repository's voices folder.

    The folder is scanned at every access, so added and removed files take effect at once. A file is read once and
    again only when it changes. Arrays that were returned earlier do not change with the file.
    """

    def __init__(self, repository: Repository) -> None:
        self.folder = repository.voices_folder
        self.built_in = repository.built_in
        self._geometry: Geometry = repository
        self._known: dict[str, tuple[_Stamp, Voice | BrokenVoice]] = {}

    def available(self) -> Mapping[str, Voice]:
        """Valid voices by name: built-in voices first, then added ones, each group in alphabetical order."""
        return {voice.name: voice for voice in self._scan() if isinstance(voice, Voice)}

    def broken(self) -> list[BrokenVoice]:
        """Files that have a voice's name and no valid content."""
        return [voice for voice in self._scan() if isinstance(voice, BrokenVoice)]

    def require(self, name: str) -> Voice:
        """Return the voice `name`.

        Raises:
            UnknownVoice: there is no such file. The error lists the available voices.
            RepositoryError: the file is invalid.
        """
        found = {voice.name: voice for voice in self._scan()}
        voice = found.get(name)
        if isinstance(voice, BrokenVoice):
            raise RepositoryError(voice.problem)
        if voice is None:
            raise UnknownVoice(name, [other.name for other in found.values() if isinstance(other, Voice)])
        return voice

    def _scan(self) -> list[Voice | BrokenVoice]:
        stamps = self._stamps()
        known = {}
        for name, stamp in stamps.items():
            before = self._known.get(name)
            if before is not None and before[0] == stamp:
                known[name] = before
            elif (voice := self._read(name)) is not None:
                known[name] = (stamp, voice)
        self._known = known
        return sorted((voice for _, voice in known.values()), key=lambda voice: (_is_added(voice), voice.name))

    def _stamps(self) -> dict[str, _Stamp]:
        stamps: dict[str, _Stamp] = {}
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    name = entry.name.removesuffix(SUFFIX)
                    if name != entry.name and NAME.fullmatch(name):
                        # The file may have been removed since the folder was read.
                        with suppress(FileNotFoundError):
                            stat = entry.stat()
                            stamps[name] = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        except FileNotFoundError:
            return {}
        except OSError as error:
            logger.warning("cannot read voices folder %s: %s", self.folder, error.strerror)
            return {name: stamp for name, (stamp, _) in self._known.items()}
        return stamps

    def _read(self, name: str) -> Voice | BrokenVoice | None:
        try:
            preset, source = read(self.folder / f"{name}{SUFFIX}", self._geometry)
        except FileNotFoundError:
            return None
        except GatewayError as error:
            logger.warning("invalid voice file: %s", error)
            return BrokenVoice(name, error.message)
        built_in = name in self.built_in and not source
        return Voice(name, "built-in" if built_in else "added", source, preset)


def _is_added(voice: Voice | BrokenVoice) -> bool:
    return isinstance(voice, Voice) and voice.origin == "added"
