"""Voice presets and their file format, MODELS/voices/NAME.safetensors.

A voice is a sequence of N steps of 17 tokens. A file holds summed input embeddings of the first E steps and tokens of
the remaining ones. A published voice holds embeddings for all steps but the last two. A voice made from a recording
holds tokens only (E = 0).
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
# Room for hours of tokens, or for five minutes of embeddings at the published width.
MAX_FILE_BYTES = 2**26

_UNKNOWN = -1
_SOURCE = "source"


class Geometry(Protocol):
    """Sizes that a voice must match. `Manifest` implements it."""

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

    embeddings: [E, dim] float32, summed input embeddings of steps 0..E-1; E may be 0.
    columns: [K + 1, 17] int64, tokens of steps E..N-1 (K >= 1) and those tokens of step N that the voice's last frame
        determines; the others are -1.
    """

    embeddings: npt.NDArray[np.float32]
    columns: npt.NDArray[np.int64]

    @property
    def frames(self) -> int:
        """Length N in frames of 80 ms."""
        return len(self.embeddings) + len(self.columns) - 1


def read(path: Path, geometry: Geometry) -> tuple[VoicePreset, str]:
    """Read a preset and its source ("" for a built-in voice). The file may change during the read.

    Raises:
        FileNotFoundError: there is no such file.
        RepositoryError: the file is unreadable, or its content does not match `geometry`; one line.
    """
    try:
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise RepositoryError(f"voices/{path.name}: {size} bytes exceed the limit of {MAX_FILE_BYTES}")
        # Not memory-mapped: access to a mapped file that is truncated meanwhile kills the process.
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
    """Return the content of a voice file. `source`: what the voice was made from, in one or two words."""
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
    """Return the reason why the models cannot use the preset; None if they can."""
    if len(preset.columns) < 2:
        return f"expected at least 2 columns, found {len(preset.columns)}"
    if not np.isfinite(preset.embeddings).all():
        return "embeddings contain NaN or infinity"
    known = np.ones(preset.columns.shape, bool)
    known[-1] = np.array(geometry.delays) > 0
    last = np.array([geometry.text_card, *[geometry.card] * (len(geometry.delays) - 1)])
    fits = (preset.columns >= 0) & (preset.columns <= last)
    if not fits[known].all() or (preset.columns[~known] != _UNKNOWN).any():
        return "columns contain tokens outside the vocabularies"
    return None


def _source(content: bytes) -> str:
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
    return str(metadata.get(_SOURCE, ""))
