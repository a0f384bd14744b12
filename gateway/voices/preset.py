"""A preset voice and its file, MODELS/voices/NAME.safetensors: columns of tokens, and embeddings of those before them.

A voice made with the reference keeps the summed embeddings of all its columns but the last two; a voice taken from a
clip keeps all its columns as tokens, and no embeddings. Both are read alike.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from gateway.errors import RepositoryError

SUFFIX = ".safetensors"
# Hours of a voice as tokens, five minutes as embeddings of the published width; whatever is larger is none.
MAX_FILE_BYTES = 2**26

_UNKNOWN = -1
_SOURCE = "source"


class Geometry(Protocol):
    """What a voice must fit: a Manifest says it."""

    @property
    def dim(self) -> int: ...

    @property
    def card(self) -> int: ...

    @property
    def text_card(self) -> int: ...

    @property
    def delays(self) -> tuple[int, ...]: ...


@dataclass(frozen=True, eq=False)
class VoicePreset:
    """A voice of N = E + K frames.

    embeddings: [E, dim] float32, the summed input embeddings of columns 0..E-1; E may be 0.
    columns: [K + 1, 17] int64, columns E..N-1 whole (at least one) and, of column N, what the voice's last frame
        already fixes (else -1).
    """

    embeddings: npt.NDArray[np.float32]
    columns: npt.NDArray[np.int64]

    @property
    def frames(self) -> int:
        """N, of 80 ms each."""
        return len(self.embeddings) + len(self.columns) - 1


def read(path: Path, geometry: Geometry) -> tuple[VoicePreset, str]:
    """The preset in a file, and where it is from ("" for one that was built in).

    The file may change while it is read. Raises FileNotFoundError, or RepositoryError, in one line, for a file that
    cannot be read or whose content does not fit `geometry`.
    """
    try:
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise RepositoryError(f"voices/{path.name}: {size} bytes are more than a voice takes")
        # Not mapped into memory: a file that shrinks meanwhile would take the process down.
        content = path.read_bytes()
        tensors = load(content)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RepositoryError(f"voices/{path.name} cannot be read: {error.strerror}") from None
    except (SafetensorError, ValueError, KeyError) as error:
        raise RepositoryError(f"voices/{path.name} cannot be read: {' '.join(str(error).split())}") from None
    preset = VoicePreset(
        _tensor(path, tensors, "embeddings", np.float32, (None, geometry.dim)),
        _tensor(path, tensors, "columns", np.int64, (None, len(geometry.delays))),
    )
    if problem := _wrong(preset, geometry):
        raise RepositoryError(f"voices/{path.name}: {problem}")
    return preset, _source(content)


def serialise(preset: VoicePreset, source: str) -> bytes:
    """The content of a preset's file. `source`: where it is from, in a word or two."""
    arrays = {"embeddings": preset.embeddings, "columns": preset.columns}
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, {_SOURCE: source})


def _tensor(
    path: Path, tensors: dict[str, npt.NDArray[Any]], key: str, dtype: type, shape: tuple[int | None, ...]
) -> npt.NDArray[Any]:
    found = tensors.get(key)
    if found is not None and found.dtype == dtype and found.ndim == len(shape) and found.shape[1:] == shape[1:]:
        return found
    expected = f"{np.dtype(dtype)} [any, {shape[1]}]"
    was = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
    raise RepositoryError(f"voices/{path.name}: {key} should be {expected}, found {was}")


def _wrong(preset: VoicePreset, geometry: Geometry) -> str | None:
    """What the models would stumble over."""
    if len(preset.columns) < 2:
        return f"expected at least 2 columns, found {len(preset.columns)}"
    if not np.isfinite(preset.embeddings).all():
        return "its embeddings are not all finite"
    known = np.ones(preset.columns.shape, bool)
    known[-1] = np.array(geometry.delays) > 0
    last = np.array([geometry.text_card, *[geometry.card] * (len(geometry.delays) - 1)])
    fits = (preset.columns >= 0) & (preset.columns <= last)
    if not fits[known].all() or (preset.columns[~known] != _UNKNOWN).any():
        return "its columns hold tokens outside the vocabularies"
    return None


def _source(content: bytes) -> str:
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
    return str(metadata.get(_SOURCE, ""))
