"""A checkpoint in any of the formats read: two models' weights, the tokenizer, the voices and an optional config."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from model_repository.checkpoint.geometry import Geometry
from model_repository.checkpoint.layout import check_tensors, lm_shapes, mimi_shapes, with_current_names
from model_repository.checkpoint.voices.collection import Voices
from model_repository.checkpoint.voices.voice import Voice
from model_repository.checkpoint.weights.formats import LM_FILE, open_weights
from model_repository.checkpoint.weights.sizes import with_sizes
from model_repository.checkpoint.weights.tensors import SafetensorsFile, TensorSource, finite, read_json_object
from model_repository.errors import CheckpointError

MIMI_FILE = "tokenizer-e351c8d8-checkpoint125.safetensors"
MLX_MIMI_FILE = "mimi.safetensors"
TOKENIZER_FILE = "tokenizer_spm_32k_3.model"
CONFIG_FILE = "config.json"
EVALUATION_FOLDER = "evaluation"
"""Questions and their right answers (`model_repository.evaluation.questions`); most checkpoints have none."""

__all__ = ["CONFIG_FILE", "EVALUATION_FOLDER", "LM_FILE", "MIMI_FILE", "MLX_MIMI_FILE", "TOKENIZER_FILE", "Checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint. No tensor is in memory: `lm`, `mimi` and `voices` read when asked, and refuse numbers that
    are not finite.
    """

    path: Path
    geometry: Geometry
    lm: TensorSource
    mimi: TensorSource
    tokenizer: Path
    voices: Voices
    evaluation: Path | None
    """Folder of the evaluation set, if it has one."""

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Opens a checkpoint and checks, from headers alone, that every tensor is there with its shape.

        `path` is a folder in one of the formats of `formats`, or a GGUF file in such a folder. Raises
        `CheckpointError` naming the file or tensor that is missing, unreadable or of another shape.
        """
        weights = open_weights(path)
        folder, lm = weights.folder, weights.tensors
        config = read_json_object(folder / CONFIG_FILE) if (folder / CONFIG_FILE).exists() else {}
        geometry = Geometry.from_config(with_sizes(config, lm, weights.label, weights.stated))
        check_tensors(weights.label, lm, lm_shapes(geometry.lm))
        mimi_file = next((name for name in (MIMI_FILE, MLX_MIMI_FILE) if (folder / name).is_file()), None)
        if mimi_file is None:
            raise _missing(folder, MIMI_FILE, "the weights of the Mimi codec")
        mimi = with_current_names(SafetensorsFile(folder / mimi_file))
        check_tensors(mimi_file, mimi, mimi_shapes(geometry.mimi))
        tokenizer = folder / TOKENIZER_FILE
        if not tokenizer.is_file():
            raise _missing(folder, TOKENIZER_FILE, "the SentencePiece model of the text stream")
        return cls(
            path,
            geometry,
            finite(lm, weights.label),
            finite(mimi, mimi_file),
            tokenizer,
            Voices(folder, geometry.lm),
            folder / EVALUATION_FOLDER if (folder / EVALUATION_FOLDER).is_dir() else None,
        )

    def voice(self, name: str) -> Voice:
        """One voice, read now. Raises `CheckpointError` for an unknown name (saying which exist) or a bad file."""
        if name not in self.voices:
            raise CheckpointError(f"{self.path}: no voice {name[:80]!r}; it has {', '.join(self.voices)}")
        return self.voices[name]


def _missing(folder: Path, file: str, what: str) -> CheckpointError:
    return CheckpointError(f"{folder}: {file} is missing (expected: {what})")
