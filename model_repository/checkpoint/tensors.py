"""Tensors of a checkpoint, read from disk one at a time (or a few rows at a time): `TensorSource` and safetensors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import ml_dtypes
import numpy as np
import numpy.typing as npt

from model_repository.errors import CheckpointError

Shape = tuple[int, ...]
Float32 = npt.NDArray[np.float32]

_DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_INTEGERS: Mapping[str, np.dtype[Any]] = {
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "U8": np.dtype("<u1"),
}
_MAX_HEADER = 100_000_000
"""Bytes; the limit of the safetensors format itself."""


class TensorSource(Protocol):
    """A mapping from the reference's tensor names to arrays, read lazily."""

    def names(self) -> Iterable[str]:
        """Names of all tensors, in file order."""
        ...

    def __contains__(self, name: object) -> bool: ...

    def shape(self, name: str) -> Shape:
        """Shape of a tensor, known without reading it. Raises `CheckpointError` for a name that is not there."""
        ...

    def read(self, name: str, rows: slice | None = None) -> Float32:
        """A tensor, or the rows `rows` (step 1) of its first axis, as a fresh float32 array.

        Only the bytes asked for are read. Raises `CheckpointError` for a name that is not there or a truncated file.
        """
        ...


@dataclass(frozen=True)
class _Entry:
    """Where a tensor lies: `begin` counts bytes from the start of the file."""

    dtype: np.dtype[Any]
    shape: Shape
    begin: int


class SafetensorsFile:
    """One safetensors file. Only its header is kept in memory; the file is open during a read and not between."""

    def __init__(self, path: Path, integers: bool = False) -> None:
        """Reads and checks the header; raises `CheckpointError` naming the file and, where it is one, the tensor.

        Tensors of whole numbers are refused unless `integers`; `stored` reads them.
        """
        self.path = path
        self._entries = _read_header(path, {**_DTYPES, **_INTEGERS} if integers else _DTYPES)

    def names(self) -> Iterable[str]:
        return self._entries.keys()

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def shape(self, name: str) -> Shape:
        return self._entry(name).shape

    def dtype(self, name: str) -> np.dtype[Any]:
        """The dtype in which a tensor lies in the file."""
        return self._entry(name).dtype

    def read(self, name: str, rows: slice | None = None) -> Float32:
        return self.stored(name, rows).astype(np.float32, copy=False)

    def stored(self, name: str, rows: slice | None = None) -> npt.NDArray[Any]:
        """What `read` reads, in the dtype of the file."""
        entry = self._entry(name)
        shape, begin = entry.shape, entry.begin
        if rows is not None:
            first, last = row_range(rows, shape[0])
            begin += first * prod(shape[1:]) * entry.dtype.itemsize
            shape = (last - first, *shape[1:])
        stored = np.empty(shape, entry.dtype)
        try:
            with self.path.open("rb") as file:
                file.seek(begin)
                count = file.readinto(stored.reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read: {error.strerror}") from error
        if count != stored.nbytes:
            raise CheckpointError(f"{self.path}: the file ends inside tensor {name!r}")
        return stored

    def _entry(self, name: str) -> _Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise CheckpointError(f"{self.path}: no tensor {name!r}") from None


class ShardedSafetensors:
    """Safetensors files that together hold one model, listed in a `*.safetensors.index.json` beside them."""

    def __init__(self, index: Path) -> None:
        """Reads the index and every shard's header; raises `CheckpointError` for a shard or tensor that is missing."""
        weight_map = read_json_object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise CheckpointError(f"{index}: 'weight_map' must map tensor names to file names")
        shards: dict[str, SafetensorsFile] = {}
        for file in sorted(set(weight_map.values())):
            if file != Path(file).name or file in ("", ".."):
                raise CheckpointError(f"{index}: shard {file!r} is not a plain file name")
            shards[file] = SafetensorsFile(index.parent / file)
        for name, file in weight_map.items():
            if name not in shards[file]:
                raise CheckpointError(f"{shards[file].path}: no tensor {name!r}, which {index.name} puts there")
        self.path = index
        self._shard_of = {name: shards[file] for name, file in weight_map.items()}

    def names(self) -> Iterable[str]:
        return self._shard_of.keys()

    def __contains__(self, name: object) -> bool:
        return name in self._shard_of

    def shape(self, name: str) -> Shape:
        return self._shard(name).shape(name)

    def read(self, name: str, rows: slice | None = None) -> Float32:
        return self._shard(name).read(name, rows)

    def _shard(self, name: str) -> SafetensorsFile:
        try:
            return self._shard_of[name]
        except KeyError:
            raise CheckpointError(f"{self.path}: no tensor {name!r}") from None


class DerivedTensors:
    """A source over another one, all of it as it is there; subclasses change what `read` gives."""

    def __init__(self, source: TensorSource) -> None:
        self._source = source

    def names(self) -> Iterable[str]:
        return self._source.names()

    def __contains__(self, name: object) -> bool:
        return name in self._source

    def shape(self, name: str) -> Shape:
        return self._source.shape(name)

    def read(self, name: str, rows: slice | None = None) -> Float32:
        return self._source.read(name, rows)


class FiniteTensors(DerivedTensors):
    """A source whose tensors hold only finite numbers. `label`: what errors call it."""

    def __init__(self, source: TensorSource, label: str) -> None:
        super().__init__(source)
        self._label = label

    def read(self, name: str, rows: slice | None = None) -> Float32:
        """As `TensorSource.read`. Raises `CheckpointError` for infinite numbers and for NaN."""
        tensor = self._source.read(name, rows)
        # The extremes of an array that has a NaN are NaN.
        if tensor.size and not (np.isfinite(tensor.min()) and np.isfinite(tensor.max())):
            raise CheckpointError(f"{self._label}: tensor {name!r} has numbers that are not finite")
        return tensor


class RenamedTensors:
    """A source in which some tensors go by another name."""

    def __init__(self, source: TensorSource, stored_names: Mapping[str, str]) -> None:
        """`stored_names` maps the name to be used to the name in `source`; every other name stays."""
        self._source = source
        self._stored_names = dict(stored_names)
        self._name_of = {stored: name for name, stored in stored_names.items()}

    def names(self) -> Iterable[str]:
        return [self._name_of.get(stored, stored) for stored in self._source.names()]

    def __contains__(self, name: object) -> bool:
        return name in self._stored_names or name in self._source

    def shape(self, name: str) -> Shape:
        return self._source.shape(self._stored_names.get(name, name))

    def read(self, name: str, rows: slice | None = None) -> Float32:
        return self._source.read(self._stored_names.get(name, name), rows)


def row_range(rows: slice | None, count: int) -> tuple[int, int]:
    """First row and the one after the last that `rows` (None: all) takes of `count`."""
    first, last, step = (rows or slice(None)).indices(count)
    if step != 1:
        raise ValueError(f"rows are read with step 1, not {step}")
    return first, max(last, first)


def as_norm(name: str, shape: Shape) -> Shape:
    """`shape`, or the reference's [1, 1, dim] for a norm that is stored without its empty axes."""
    return (1, 1, shape[-1]) if name.endswith(".alpha") and shape and prod(shape[:-1]) == 1 else shape


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; raises `CheckpointError` if there is none."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: must hold a JSON object, got {type(value).__name__}")
    return value


def _read_header(path: Path, dtypes: Mapping[str, np.dtype[Any]]) -> dict[str, _Entry]:
    """Parses the header: u64 length, a JSON object {name: {dtype, shape, data_offsets}}, then the data."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER):
                raise CheckpointError(f"{path}: truncated or no safetensors file: its header does not fit")
            raw = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: no safetensors file: its header is not valid JSON") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: no safetensors file: its header is not a JSON object")
    data = 8 + length
    return {
        name: _entry(path, name, description, data, size, dtypes)
        for name, description in header.items()
        if name != "__metadata__"
    }


def _entry(
    path: Path, name: str, description: Any, data: int, size: int, dtypes: Mapping[str, np.dtype[Any]]
) -> _Entry:
    """Checks one tensor's description against the file: the data starts at byte `data` of `size`."""
    where = f"{path}: tensor {name!r}"
    if not isinstance(description, dict):
        raise CheckpointError(f"{where}: its description is not an object")
    dtype = description.get("dtype")
    if not isinstance(dtype, str) or dtype not in dtypes:
        raise CheckpointError(f"{where}: dtype {dtype!r} is not read, only {', '.join(dtypes)}")
    shape, offsets = description.get("shape"), description.get("data_offsets")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{where}: shape {shape!r} and offsets {offsets!r} must be lists of natural numbers")
    begin, end = offsets
    if end - begin != prod(shape) * dtypes[dtype].itemsize:
        raise CheckpointError(f"{where}: {end - begin} bytes do not hold {dtype} {shape}")
    if data + end > size:
        raise CheckpointError(f"{where}: its data ends at byte {data + end}, the file at {size}: truncated")
    return _Entry(dtypes[dtype], tuple(shape), data + begin)


def _naturals(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
