"""A checkpoint in the published layout: the two weight files, the tokenizer, the voices and an optional config."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from model_repository.checkpoint.geometry import Geometry
from model_repository.checkpoint.layout import check_tensors, lm_shapes, mimi_shapes, with_current_names
from model_repository.checkpoint.tensors import SafetensorsFile, ShardedSafetensors, TensorSource, read_json_object
from model_repository.checkpoint.voice import Voice
from model_repository.checkpoint.voices import Voices
from model_repository.errors import CheckpointError

LM_FILE = "model.safetensors"
MIMI_FILE = "tokenizer-e351c8d8-checkpoint125.safetensors"
TOKENIZER_FILE = "tokenizer_spm_32k_3.model"
CONFIG_FILE = "config.json"


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
        return cls(path, geometry, lm, mimi, tokenizer, Voices(path, geometry.lm))

    def voice(self, name: str) -> Voice:
        """One voice, read now. Raises `CheckpointError` for an unknown name (saying which exist) or a bad file."""
        if name not in self.voices:
            raise CheckpointError(f"{self.path}: no voice {name[:80]!r}; it has {', '.join(self.voices)}")
        return self.voices[name]


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
