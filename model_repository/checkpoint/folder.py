"""A checkpoint in the published layout: the two weight files, the tokenizer, the voices and an optional config."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from model_repository.checkpoint.geometry import Geometry
from model_repository.checkpoint.layout import check_tensors, lm_shapes, mimi_shapes, with_current_names
from model_repository.checkpoint.tensors import SafetensorsFile, ShardedSafetensors, TensorSource, read_json_object
from model_repository.checkpoint.torch_file import MAX_FILE_BYTES, read_torch_tensors
from model_repository.checkpoint.voice import Voice, check_voice_name
from model_repository.errors import CheckpointError

LM_FILE = "model.safetensors"
MIMI_FILE = "tokenizer-e351c8d8-checkpoint125.safetensors"
TOKENIZER_FILE = "tokenizer_spm_32k_3.model"
CONFIG_FILE = "config.json"
VOICES_FOLDER = "voices"
VOICES_ARCHIVE = "voices.tgz"

_MAX_ARCHIVE_BYTES = 2**31
"""Unpacked size up to which a `voices.tgz` is read; the published one holds 18 voices of about half a megabyte."""


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint. No tensor is in memory: `lm`, `mimi` and `voices` read when asked."""

    path: Path
    geometry: Geometry
    lm: TensorSource
    mimi: TensorSource
    tokenizer: Path
    voices: Voices

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Opens a folder and checks, from headers alone, that every tensor is there with its shape.

        Raises `CheckpointError` naming the file or tensor that is missing, unreadable or of another shape.
        """
        if not path.is_dir():
            raise CheckpointError(f"{path}: no such folder; a checkpoint is a folder with {LM_FILE} and its companions")
        config = read_json_object(path / CONFIG_FILE) if (path / CONFIG_FILE).exists() else {}
        geometry = Geometry.from_config(config)
        lm = _tensors(path, LM_FILE, "the language model's weights")
        check_tensors(LM_FILE, lm, lm_shapes(geometry.lm))
        mimi = with_current_names(_tensors(path, MIMI_FILE, "the weights of the Mimi codec"))
        check_tensors(MIMI_FILE, mimi, mimi_shapes(geometry.mimi))
        tokenizer = path / TOKENIZER_FILE
        if not tokenizer.is_file():
            raise _missing(path, TOKENIZER_FILE, "the SentencePiece model of the text stream")
        return cls(path, geometry, lm, mimi, tokenizer, Voices(path, geometry))

    def voice(self, name: str) -> Voice:
        """One voice, read now. Raises `CheckpointError` for an unknown name (saying which exist) or a bad file."""
        if name not in self.voices:
            raise CheckpointError(f"{self.path}: no voice {name[:80]!r}; it has {', '.join(self.voices)}")
        return self.voices[name]


class Voices(Mapping[str, Voice]):
    """The voices of a checkpoint by name, in alphabetical order, each read and checked whenever it is asked for."""

    def __init__(self, checkpoint: Path, geometry: Geometry) -> None:
        """Lists `voices/*.pt`, or else the archive `voices.tgz`; raises `CheckpointError` if there is neither."""
        folder, archive = checkpoint / VOICES_FOLDER, checkpoint / VOICES_ARCHIVE
        self._lm = geometry.lm
        self._archive = archive
        self._files: dict[str, Path] = {}
        if folder.is_dir():
            self._files = {check_voice_name(file.stem): file for file in sorted(folder.glob("[!.]*.pt"))}
            names = list(self._files)
        elif archive.is_file():
            names = sorted(name for name, _ in _archived_voices(archive))
        else:
            raise _missing(checkpoint, f"{VOICES_FOLDER}/", f"voices as NAME.pt, or {VOICES_ARCHIVE}")
        if not names:
            raise CheckpointError(f"{folder if folder.is_dir() else archive}: holds no voice NAME.pt")
        self._names = tuple(names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> Voice:
        if name not in self._names:
            raise KeyError(name)
        source = self._files.get(name) or _from_archive(self._archive, name)
        label = f"{VOICES_FOLDER}/{name}.pt"
        tensors = read_torch_tensors(source, label)
        for key in ("embeddings", "cache"):
            if key not in tensors:
                raise CheckpointError(f"{label}: no tensor {key!r}; it holds {sorted(tensors)}")
        return Voice.from_cache(name, tensors["embeddings"], tensors["cache"], self._lm)


def _tensors(folder: Path, file: str, what: str) -> TensorSource:
    """The tensors of a file, or of the shards listed in the index beside it."""
    index = folder / f"{file}.index.json"
    if (folder / file).is_file():
        return SafetensorsFile(folder / file)
    if index.is_file():
        return ShardedSafetensors(index)
    raise _missing(folder, file, what)


def _missing(folder: Path, file: str, what: str) -> CheckpointError:
    return CheckpointError(f"{folder}: {file} is missing (expected: {what})")


def _from_archive(archive: Path, name: str) -> bytes:
    for found, content in _archived_voices(archive, wanted=name):
        if found == name:
            return content
    raise CheckpointError(f"{archive}: voice {name} is no longer there")


def _archived_voices(archive: Path, wanted: str | None = None) -> Iterator[tuple[str, bytes]]:
    """Names of the voices in the archive, and the content of the wanted one (of the others nothing).

    Nothing is unpacked to disk. Raises `CheckpointError` for a member that an honest archive of voices has not:
    a link, a device, a path that leads out of it, a voice twice, or more bytes than voices take.
    """
    seen: set[str] = set()
    total = 0
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                where = f"{archive}: member {member.name[:80]!r}"
                member_path = PurePosixPath(member.name)
                if member_path.is_absolute() or ".." in member_path.parts or "\\" in member.name:
                    raise CheckpointError(f"{where} leads out of the archive")
                if not member.isfile() and not member.isdir():
                    raise CheckpointError(f"{where} is neither a file nor a folder")
                total += member.size
                if member.size > MAX_FILE_BYTES or total > _MAX_ARCHIVE_BYTES:
                    raise CheckpointError(f"{where} is larger than voices are")
                if member.isdir() or member_path.suffix != ".pt" or member_path.name.startswith("."):
                    continue
                name = check_voice_name(member_path.stem)
                if name in seen:
                    raise CheckpointError(f"{where}: voice {name} is there twice")
                seen.add(name)
                file = tar.extractfile(member) if name == wanted else None
                yield name, file.read() if file else b""
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise CheckpointError(f"{archive}: truncated or not a gzipped tar archive: {error}") from error
