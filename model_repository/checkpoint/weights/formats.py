"""Which of the formats read lies at a path, and the language model's tensors in it.

published   a folder with model.safetensors, or its shards and their index
GGUF        a folder with NAME.gguf or NAME.gguf.shard-00 …, or the path of that file
MLX         a folder with temporal.safetensors, depformer.safetensors and embeddings.safetensors
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model_repository.checkpoint.weights.gguf_file import GgufFile
from model_repository.checkpoint.weights.gguf_metadata import stated_sizes
from model_repository.checkpoint.weights.mlx_folder import MLX_FILES, MlxFolder
from model_repository.checkpoint.weights.pieces import pieces_of, whole_name
from model_repository.checkpoint.weights.tensors import SafetensorsFile, ShardedSafetensors, TensorSource
from model_repository.errors import CheckpointError

LM_FILE = "model.safetensors"

_INDEX = f"{LM_FILE}.index.json"
_READ = f"{LM_FILE} (or its shards and {_INDEX}), NAME.gguf (or NAME.gguf.shard-00 …), or {', '.join(MLX_FILES)} (MLX)"
_MAX_NAMES = 8


@dataclass(frozen=True)
class Weights:
    """The language model of a checkpoint: `label` is how messages call its file, `folder` where all else lies.

    `stated` is what the file says of its geometry, as keys of the section `lm` of a `config.json`.
    """

    folder: Path
    label: str
    tensors: TensorSource
    stated: Mapping[str, Any] = field(default_factory=dict)


def open_weights(path: Path) -> Weights:
    """Opens the weights at `path`, reading headers only.

    Raises `CheckpointError` for a broken file, and for a path that is none of the formats: it says what is there.
    """
    if path.is_file():
        if _is_gguf(path):
            return _gguf(path)
        raise CheckpointError(f"{path}: not a checkpoint; what is read is a folder with {_READ}")
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder; a checkpoint is a folder with {_READ}")
    if (path / LM_FILE).is_file():
        return Weights(path, LM_FILE, SafetensorsFile(path / LM_FILE))
    if (path / _INDEX).is_file():
        return Weights(path, LM_FILE, ShardedSafetensors(path / _INDEX))
    if gguf := _one_gguf(path):
        return _gguf(gguf)
    if any((path / name).is_file() for name in MLX_FILES):
        return Weights(path, f"{path.name} (MLX)", MlxFolder(path))
    raise CheckpointError(f"{path}: no weights there: expected {_READ}; found {_listed(path)}")


def _gguf(path: Path) -> Weights:
    file = GgufFile(pieces_of(path))
    label = whole_name(path) or path.name
    return Weights(path.parent, label, file, stated_sizes(file.metadata, file, label))


def _is_gguf(path: Path) -> bool:
    return (whole_name(path) or path.name).endswith(".gguf")


def _one_gguf(folder: Path) -> Path | None:
    """The folder's only GGUF: the whole file, or the first of its pieces."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if _is_gguf(path) and path.is_file() and not path.name.startswith("."):
            found.setdefault(whole_name(path) or path.name, path)
    if len(found) > 1:
        raise CheckpointError(f"{folder}: holds {len(found)} models: give the path of one of {', '.join(found)}")
    return next(iter(found.values()), None)


def _listed(folder: Path) -> str:
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more if names else "nothing"
