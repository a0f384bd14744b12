"""The voices a repository offers now: what lies in its folder, looked at again whenever somebody asks."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gateway.errors import GatewayError, RepositoryError, UnknownVoice
from gateway.voices.preset import SUFFIX, Geometry, VoicePreset, read

logger = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

Origin = Literal["built-in", "added"]


@dataclass(frozen=True, eq=False)
class Voice:
    """A voice file that can be used. `source`: what an added voice was made from, as far as is known."""

    name: str
    origin: Origin
    source: str
    preset: VoicePreset

    @property
    def frames(self) -> int:
        """Its length in frames of 80 ms."""
        return self.preset.frames


@dataclass(frozen=True, eq=False)
class BrokenVoice:
    """A voice file that cannot be used, and why, in one line."""

    name: str
    problem: str


# The file's inode, time of change in ns, and bytes: a file written anew has at least one of them changed.
_Stamp = tuple[int, int, int]


class Voices:
    """The files NAME.safetensors of one folder. Each is read once and kept until it changes; arrays once handed out
    stay as they are, whatever becomes of the file.
    """

    def __init__(self, folder: Path, geometry: Geometry, built_in: Collection[str]) -> None:
        """`built_in`: names of the voices that came with the checkpoint."""
        self.folder = folder
        self._geometry = geometry
        self.built_in = built_in
        self._known: dict[str, tuple[_Stamp, Voice | BrokenVoice]] = {}

    def now(self) -> Mapping[str, Voice]:
        """Those that can be used, by name: first those built in, then those added, each in alphabetical order."""
        return {voice.name: voice for voice in self._look() if isinstance(voice, Voice)}

    def broken(self) -> list[BrokenVoice]:
        """Files that should be voices and cannot be used."""
        return [voice for voice in self._look() if isinstance(voice, BrokenVoice)]

    def require(self, name: str) -> Voice:
        """The voice of that name. Raises UnknownVoice, which lists those there are, or RepositoryError for a file
        that cannot be used.
        """
        found = {voice.name: voice for voice in self._look()}
        voice = found.get(name)
        if isinstance(voice, BrokenVoice):
            raise RepositoryError(voice.problem)
        if voice is None:
            raise UnknownVoice(name, [other.name for other in found.values() if isinstance(other, Voice)])
        return voice

    def _look(self) -> list[Voice | BrokenVoice]:
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
                        # It may have been removed since the folder was read.
                        with suppress(FileNotFoundError):
                            stat = entry.stat()
                            stamps[name] = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        except FileNotFoundError:
            return {}
        except OSError as error:
            logger.warning("%s cannot be looked at: %s", self.folder, error.strerror)
            return {name: stamp for name, (stamp, _) in self._known.items()}
        return stamps

    def _read(self, name: str) -> Voice | BrokenVoice | None:
        try:
            preset, source = read(self.folder / f"{name}{SUFFIX}", self._geometry)
        except FileNotFoundError:
            return None
        except GatewayError as error:
            logger.warning("a voice that cannot be used: %s", error)
            return BrokenVoice(name, error.message)
        built_in = name in self.built_in and not source
        return Voice(name, "built-in" if built_in else "added", source, preset)


def _is_added(voice: Voice | BrokenVoice) -> bool:
    return isinstance(voice, Voice) and voice.origin == "added"
