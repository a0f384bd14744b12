"""Reads one voice from a file in any of the forms in which voices are published.

NAME.pt                                   the release: a saved dictionary of `embeddings` and `cache`
NAME.safetensors                          the same two tensors; or `embeddings` and `columns`, as `Voice.save` writes
NAME.bin                                  speech-core: magic 0x50506558, the ring of tokens, then float32 embeddings
NAME.embeddings.bin + NAME.cache.json     the browser port: raw float32 embeddings, and the ring as JSON
voices.tgz                                the release's archive of NAME.pt
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model_repository.checkpoint.voices.voice import Voice, VoiceGeometry
from model_repository.checkpoint.voices.voice_archive import archived_voices
from model_repository.checkpoint.weights.tensors import SafetensorsFile, read_json_object
from model_repository.checkpoint.weights.torch_file import MAX_FILE_BYTES, read_torch_tensors
from model_repository.errors import CheckpointError

EMBEDDINGS_SUFFIX, CACHE_SUFFIX = ".embeddings.bin", ".cache.json"
VOICE_SUFFIXES = (".pt", ".safetensors", EMBEDDINGS_SUFFIX, CACHE_SUFFIX, ".bin", ".tgz", ".tar.gz")
"""Endings of the names of files that `read_voice` reads; of two that fit, the earlier one says what the file is."""

_BIN_MAGIC = 0x50506558
_BIN_VERSION = 1
_BIN_HEADER = struct.Struct("<4I")

Array = npt.NDArray[Any]


def is_voice_file(path: Path) -> bool:
    """Whether the file's name is that of a voice, in one of the forms read here, and not that of a recording."""
    return path.name.endswith(VOICE_SUFFIXES)


def voice_name(path: Path) -> str:
    """The name a voice's file gives it: NAME of `NAME.pt`, `NAME.embeddings.bin` and so on."""
    return path.name.removesuffix(_suffix(path))


def read_voice(path: Path, lm: VoiceGeometry, name: str | None = None) -> Voice:
    """The voice in the file `path`, called `name` (default: as its file says), checked against the geometry `lm`.

    An archive of several voices needs the `name` of one of them. Raises `CheckpointError`, in one line, for a file
    that cannot be read, is in none of the forms read, holds no voice, or one of a model of another geometry.
    """
    suffix = _suffix(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise CheckpointError(f"{path}: {path.stat().st_size} bytes are more than a voice takes ({MAX_FILE_BYTES})")
    if suffix in (".tgz", ".tar.gz"):
        return _from_archive(path, lm, name)
    return _READERS[suffix](path, name if name is not None else voice_name(path), lm)


def voice_from_torch(source: Path | bytes, label: str, name: str, lm: VoiceGeometry) -> Voice:
    """A voice from a `.pt` file or its content; `label` is how messages call it."""
    tensors = read_torch_tensors(source, label)
    for key in ("embeddings", "cache"):
        if key not in tensors:
            raise CheckpointError(f"{label}: no tensor {key!r}; it holds {sorted(tensors)}")
    return Voice.from_cache(name, tensors["embeddings"], tensors["cache"], lm)


def _suffix(path: Path) -> str:
    for suffix in VOICE_SUFFIXES:
        if path.name.endswith(suffix):
            return suffix
    raise CheckpointError(f"{path}: not the name of a voice file; read are {', '.join(VOICE_SUFFIXES)}")


def _from_pt(path: Path, name: str, lm: VoiceGeometry) -> Voice:
    return voice_from_torch(path, str(path), name, lm)


def _from_safetensors(path: Path, name: str, lm: VoiceGeometry) -> Voice:
    file = SafetensorsFile(path, integers=True)
    if "embeddings" not in file or not {"cache", "columns"} & set(file.names()):
        held = sorted(file.names())[:8]
        raise CheckpointError(f"{path}: a voice holds 'embeddings' and 'cache' (or 'columns'); it holds {held}")
    embeddings = file.read("embeddings")
    if "cache" in file:
        return Voice.from_cache(name, _four_axes(embeddings), _three_axes(file.stored("cache")), lm)
    return Voice.from_columns(name, embeddings, file.stored("columns"), lm)


def _from_pair(path: Path, name: str, lm: VoiceGeometry) -> Voice:
    """Either file of the pair may be given."""
    stem = voice_name(path)
    embeddings_file, cache_file = (path.with_name(stem + suffix) for suffix in (EMBEDDINGS_SUFFIX, CACHE_SUFFIX))
    description = read_json_object(cache_file)
    dim, frames = description.get("dim", lm.dim), description.get("num_frames")
    if dim != lm.dim:
        raise CheckpointError(f"{cache_file}: 'dim' must be {lm.dim}, got {dim!r}"[:300])
    content = _content(embeddings_file)
    if len(content) % (4 * lm.dim):
        raise CheckpointError(f"{embeddings_file}: {len(content)} bytes are not rows of {lm.dim} float32")
    embeddings = np.frombuffer(content, "<f4").reshape(-1, lm.dim)
    # The name leaves open whether the frame that has no row is counted.
    if frames is not None and frames not in (len(embeddings), len(embeddings) + 1):
        raise CheckpointError(f"{embeddings_file}: holds {len(embeddings)} rows, its {cache_file.name} says {frames!r}")
    return Voice.from_cache(name, _four_axes(embeddings), _integers(description.get("cache"), cache_file), lm)


def _from_bin(path: Path, name: str, lm: VoiceGeometry) -> Voice:
    """u32 magic, version, streams, ring length; i64 cache [streams, ring]; u32 rows, dim; f32 embeddings."""
    content = _content(path)
    if len(content) < _BIN_HEADER.size:
        raise CheckpointError(f"{path}: {len(content)} bytes are too few for a voice")
    magic, version, streams, ring = _BIN_HEADER.unpack_from(content)
    if magic != _BIN_MAGIC or version != _BIN_VERSION:
        expected = f"a voice begins with {_BIN_MAGIC:#x} and version {_BIN_VERSION}"
        raise CheckpointError(f"{path}: {expected}, found {magic:#x} and {version}")
    begin = _BIN_HEADER.size + 8 * streams * ring
    if begin + 8 > len(content):
        raise CheckpointError(f"{path}: the file ends inside its tokens")
    cache = np.frombuffer(content, "<i8", streams * ring, _BIN_HEADER.size).reshape(1, streams, ring)
    rows, dim = struct.unpack_from("<2I", content, begin)
    if len(content) != begin + 8 + 4 * rows * dim:
        found = len(content) - begin - 8
        raise CheckpointError(f"{path}: {rows} rows of {dim} float32 are {4 * rows * dim} bytes, found {found}")
    embeddings = np.frombuffer(content, "<f4", rows * dim, begin + 8).reshape(rows, dim)
    return Voice.from_cache(name, _four_axes(embeddings), cache, lm)


def _from_archive(path: Path, lm: VoiceGeometry, name: str | None) -> Voice:
    names = sorted(found for found, _ in archived_voices(path))
    wanted = names[0] if name is None and len(names) == 1 else name
    if wanted not in names:
        asked = "say which voice" if wanted is None else f"no voice {wanted[:80]!r}"
        raise CheckpointError(f"{path}: {asked}; it has {', '.join(names) or 'none'}")
    content = next(content for found, content in archived_voices(path, [wanted]) if found == wanted)
    return voice_from_torch(content, f"{path}: {wanted}.pt", wanted, lm)


_READERS: dict[str, Callable[[Path, str, VoiceGeometry], Voice]] = {
    ".pt": _from_pt,
    ".safetensors": _from_safetensors,
    EMBEDDINGS_SUFFIX: _from_pair,
    CACHE_SUFFIX: _from_pair,
    ".bin": _from_bin,
}


def _content(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise CheckpointError(f"{path}: {path.stat().st_size} bytes are more than a voice takes ({MAX_FILE_BYTES})")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def _integers(value: Any, path: Path) -> Array:
    """The ring as JSON holds it, [streams][length], with an axis before."""
    try:
        array = np.array(value)
    except (ValueError, OverflowError):
        array = np.array(None)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
        raise CheckpointError(f"{path}: 'cache' must be rows of tokens, one row per stream")
    return array[None]


def _four_axes(embeddings: Array) -> Array:
    """[rows, dim] as the reference has it: [rows, 1, 1, dim]."""
    return embeddings[:, None, None] if embeddings.ndim == 2 else embeddings


def _three_axes(cache: Array) -> Array:
    """[streams, ring] as the reference has it: [1, streams, ring]."""
    return cache[None] if cache.ndim == 2 else cache
