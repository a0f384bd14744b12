"""Tensors of a checkpoint, read from disk one at a time (or a few rows at a time): `TensorSource` and safetensors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import ml_dtypes
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

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
_MAX_MESSAGE = 300


class TensorSource(Protocol):
    """A mapping from the reference's tensor names to arrays, read lazily."""

    def names(self) -> Iterable[str]:
        """Names of all tensors."""
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


Stored = TypeVar("Stored")
"""Where and how a format keeps a tensor."""


class NamedTensors(Generic[Stored]):
    """The tensors of a file or folder, `path`, by name."""

    def __init__(self, path: Path, tensors: Mapping[str, Stored]) -> None:
        self.path = path
        self._tensors = tensors

    def names(self) -> Iterable[str]:
        return self._tensors.keys()

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def _tensor(self, name: str) -> Stored:
        try:
            return self._tensors[name]
        except KeyError:
            raise CheckpointError(f"{self.path}: no tensor {name!r}") from None


class SafetensorsFile(NamedTensors[tuple[np.dtype[Any], Shape]]):
    """One safetensors file, which is open during a read and not between."""

    def __init__(self, path: Path, integers: bool = False) -> None:
        """Reads and checks the header; raises `CheckpointError` naming the file and, where it is one, the tensor.

        Tensors of whole numbers are refused unless `integers`; `stored` reads them.
        """
        tensors: dict[str, tuple[np.dtype[Any], Shape]] = {}
        super().__init__(path, tensors)
        dtypes = {**_DTYPES, **_INTEGERS} if integers else _DTYPES
        with self._opened() as file:
            for name in list(file.keys()):
                tensor = file.get_slice(name)
                if tensor.get_dtype() not in dtypes:
                    raise CheckpointError(
                        f"{path}: tensor {name!r}: dtype {tensor.get_dtype()} is not read, only {', '.join(dtypes)}"
                    )
                tensors[name] = dtypes[tensor.get_dtype()], tuple(tensor.get_shape())

    def shape(self, name: str) -> Shape:
        return self._tensor(name)[1]

    def dtype(self, name: str) -> np.dtype[Any]:
        """The dtype in which a tensor lies in the file."""
        return self._tensor(name)[0]

    def read(self, name: str, rows: slice | None = None) -> Float32:
        return self.stored(name, rows).astype(np.float32, copy=False)

    def stored(self, name: str, rows: slice | None = None) -> npt.NDArray[Any]:
        """What `read` reads, in the dtype of the file."""
        dtype, shape = self._tensor(name)
        with self._opened() as file:
            if rows is None:
                stored: npt.NDArray[Any] = file.get_tensor(name)
                return stored
            first, last = row_range(rows, shape[0])
            # The library refuses slices that take nothing.
            return file.get_slice(name)[first:last] if first < last else np.empty((0, *shape[1:]), dtype)

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """The library's view of the file; its errors become `CheckpointError`."""
        try:
            with safe_open(self.path, framework="np") as file:
                yield file
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        except SafetensorError as error:
            raise CheckpointError(f"{self.path}: truncated or no safetensors file: {error}"[:_MAX_MESSAGE]) from error


class ShardedSafetensors(NamedTensors[SafetensorsFile]):
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
        super().__init__(index, {name: shards[file] for name, file in weight_map.items()})

    def shape(self, name: str) -> Shape:
        return self._tensor(name).shape(name)

    def read(self, name: str, rows: slice | None = None) -> Float32:
        return self._tensor(name).read(name, rows)


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


class RenamedTensors(DerivedTensors):
    """A source in which some tensors go by another name."""

    def __init__(self, source: TensorSource, stored_names: Mapping[str, str]) -> None:
        """`stored_names` maps the name to be used to the name in `source`; every other name stays."""
        super().__init__(source)
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
