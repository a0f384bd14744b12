"""A voice: the token columns of a short recording, of which all but the last two are already summed embeddings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from model_repository.checkpoint.weights.tensors import Float32
from model_repository.errors import CheckpointError

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
UNKNOWN = -1
"""Token of a stream that a column does not fix."""


def check_voice_name(name: str) -> str:
    """The name itself if it can be one (and so can name no other folder); else raises `CheckpointError`."""
    if not _NAME.fullmatch(name):
        raise CheckpointError(f"voice name {name[:80]!r} must be 1 to 64 letters, digits, '_' or '-'")
    return name


class VoiceGeometry(Protocol):
    """What a voice must fit: an `LmGeometry` says it, and so does a built repository's manifest."""

    @property
    def dim(self) -> int: ...

    @property
    def card(self) -> int: ...

    @property
    def text_card(self) -> int: ...

    @property
    def delays(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, eq=False)
class Voice:
    """A voice of N frames.

    `embeddings` [N-1, dim] float32: summed input embeddings of columns 0 … N-2.
    `columns` [2, streams] int64: all tokens of column N-1; of column N the delayed streams', the others `UNKNOWN`.
    """

    name: str
    embeddings: Float32
    columns: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        check_voice_name(self.name)
        embeddings, columns = self.embeddings, self.columns
        if embeddings.dtype != np.float32 or embeddings.ndim != 2 or not embeddings.size:
            raise self._wrong("embeddings", "float32 [frames - 1, dim]", embeddings)
        if columns.dtype != np.int64 or columns.ndim != 2 or len(columns) != 2:
            raise self._wrong("columns", "int64 [2, streams]", columns)
        if not np.isfinite(embeddings).all():
            raise CheckpointError(f"voice {self.name}: embeddings contain NaN or infinity")

    @property
    def frames(self) -> int:
        """N, the number of voice frames (80 ms each)."""
        return len(self.embeddings) + 1

    @classmethod
    def from_cache(cls, name: str, embeddings: npt.NDArray[Any], cache: npt.NDArray[Any], lm: VoiceGeometry) -> Voice:
        """A voice from what the reference saves: `embeddings` [N-1, 1, 1, dim] and its token ring `cache` [1, 17, 4].

        The ring holds column p at p modulo its length; only the columns N-1 and N of it are not stale. Raises
        `CheckpointError` for other shapes and for tokens outside the vocabularies.
        """
        ring, streams = max(lm.delays) + 3, len(lm.delays)
        check_voice_name(name)
        if embeddings.ndim != 4 or embeddings.shape[1:] != (1, 1, lm.dim):
            shape = f"[frames - 1, 1, 1, {lm.dim}]"
            raise CheckpointError(f"voice {name}: 'embeddings' must be {shape}, got {list(embeddings.shape)}")
        if cache.shape != (1, streams, ring) or not np.issubdtype(cache.dtype, np.integer):
            shape = f"[1, {streams}, {ring}] of integers"
            raise CheckpointError(f"voice {name}: 'cache' must be {shape}, got {cache.dtype} {list(cache.shape)}")
        frames = len(embeddings) + 1
        columns = cache[0].T[[(frames - 1) % ring, frames % ring]].astype(np.int64)
        return cls.from_columns(name, embeddings[:, 0, 0].astype(np.float32), columns, lm)

    @classmethod
    def from_columns(cls, name: str, embeddings: Float32, columns: npt.NDArray[np.int64], lm: VoiceGeometry) -> Voice:
        """A voice from `embeddings` [N-1, dim] and its last two columns; what column N does not fix is ignored.

        Raises `CheckpointError` for other shapes and for tokens outside the vocabularies.
        """
        voice = cls(name, embeddings, columns.copy())
        if embeddings.shape[1] != lm.dim:
            raise voice._wrong("embeddings", f"float32 [frames - 1, {lm.dim}]", embeddings)
        if columns.shape[1] != len(lm.delays):
            raise voice._wrong("columns", f"int64 [2, {len(lm.delays)}]", columns)
        known = np.array([[True] * len(lm.delays), [delay > 0 for delay in lm.delays]])
        last = np.array([lm.text_card, *[lm.card] * (len(lm.delays) - 1)])
        if not ((columns >= 0) & (columns <= last))[known].all():
            raise CheckpointError(f"voice {name}: it holds tokens outside the vocabularies")
        voice.columns[~known] = UNKNOWN
        return voice

    def save(self, path: Path) -> None:
        """Writes the two arrays as safetensors."""
        arrays = {"embeddings": self.embeddings, "columns": self.columns}
        # `save_file` would let nobody else read it, whatever the umask says.
        path.write_bytes(safetensors.numpy.save({name: np.ascontiguousarray(of) for name, of in arrays.items()}))

    @classmethod
    def load(cls, path: Path) -> Voice:
        """Reads what `save` wrote; the file's stem is the name. Raises `CheckpointError` for anything else."""
        try:
            arrays = safetensors.numpy.load_file(path)
            return cls(path.stem, arrays["embeddings"], arrays["columns"])
        except (OSError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{path}: cannot be read as a voice: {error}") from error
        except KeyError as error:
            raise CheckpointError(f"{path}: a voice must hold {error}") from None

    def _wrong(self, what: str, expected: str, got: npt.NDArray[Any]) -> CheckpointError:
        return CheckpointError(f"voice {self.name}: {what} must be {expected}, got {got.dtype} {list(got.shape)}")
