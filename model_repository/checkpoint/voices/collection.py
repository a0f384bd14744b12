"""The voices of a checkpoint: the files of its folder `voices`, pairs beside the weights, or else `voices.tgz`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from model_repository.checkpoint.voices import VOICES_FOLDER
from model_repository.checkpoint.voices.voice import Voice, VoiceGeometry, check_voice_name
from model_repository.checkpoint.voices.voice_archive import VOICES_ARCHIVE, archived_voices
from model_repository.checkpoint.voices.voice_file import EMBEDDINGS_SUFFIX, read_voice, voice_name
from model_repository.errors import CheckpointError

_SUFFIXES = (".pt", ".safetensors", ".bin", EMBEDDINGS_SUFFIX)
"""Endings of files that are one voice each; of a voice in several forms the earliest here is read."""


class Voices(Mapping[str, Voice]):
    """The voices of a checkpoint by name, in alphabetical order, each read and checked whenever it is asked for."""

    def __init__(self, checkpoint: Path, lm: VoiceGeometry) -> None:
        """Lists them; raises `CheckpointError` if there are none, or a name that cannot be a voice's."""
        folder, archive = checkpoint / VOICES_FOLDER, checkpoint / VOICES_ARCHIVE
        self._lm = lm
        self._archive = archive
        self._files = _files(checkpoint, (EMBEDDINGS_SUFFIX,)) | _files(folder, _SUFFIXES)
        if self._files:
            names = set(self._files)
        elif archive.is_file():
            names = {name for name, _ in archived_voices(archive)}
        elif folder.is_dir():
            names = set()
        else:
            expected = f"voices as NAME.pt, or {VOICES_ARCHIVE}"
            raise CheckpointError(f"{checkpoint}: {VOICES_FOLDER}/ is missing (expected: {expected})")
        if not names:
            raise CheckpointError(f"{archive if archive.is_file() else folder}: holds no voice NAME.pt")
        self._names = tuple(sorted(names))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> Voice:
        if name not in self._names:
            raise KeyError(name)
        if name in self._files:
            return read_voice(self._files[name], self._lm)
        return read_voice(self._archive, self._lm, name)


def _files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for suffix in reversed(suffixes):
        for file in sorted(folder.glob(f"[!.]*{suffix}")):
            name = voice_name(file)
            # An `.embeddings.bin` ends in `.bin` too.
            if file.name == name + suffix:
                files[check_voice_name(name)] = file
    return files
