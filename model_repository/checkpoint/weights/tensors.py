"""Tensors of a checkpoint, read from disk one at a time (or a few rows at a time): `TensorSource` and safetensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class Tensor:
    """A tensor that is read when it is asked for.

    `read` takes the wanted rows of the first axis (step 1; None: all) and gives a fresh float32 array. It reads no
    other bytes, and raises `CheckpointError` for a truncated file.
    """

    shape: Shape
    read: Callable[[slice | None], Float32]


class TensorSource:
    """Tensors by the reference's names. `path`: the file or folder that errors name."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        self.path = path
        self._tensors = tensors

    def names(self) -> Iterable[str]:
        """Names of all tensors."""
        return self._tensors.keys()

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def tensor(self, name: str) -> Tensor:
        """Raises `CheckpointError` for a name that is not there, as `shape` and `read` do."""
        if name not in self._tensors:
            raise CheckpointError(f"{self.path}: no tensor {name!r}")
        return self._tensors[name]

    def shape(self, name: str) -> Shape:
        """Shape of a tensor, known without reading it."""
        return self.tensor(name).shape

    def read(self, name: str, rows: slice | None = None) -> Float32:
        """See `Tensor.read`."""
        return self.tensor(name).read(rows)


class SafetensorsFile(TensorSource):
    """One safetensors file, which is open during a read and not between."""

    def __init__(self, path: Path, integers: bool = False) -> None:
        """Reads and checks the header; raises `CheckpointError` naming the file and, where it is one, the tensor.

        Tensors of whole numbers are refused unless `integers`; `stored` reads them.
        """
        tensors: dict[str, Tensor] = {}
        super().__init__(path, tensors)
        self.dtypes: dict[str, np.dtype[Any]] = {}
        """Dtypes in which tensors lie in the file."""
        dtypes = {**_DTYPES, **_INTEGERS} if integers else _DTYPES
        with self._opened() as file:
            for name in list(file.keys()):
                tensor = file.get_slice(name)
                if tensor.get_dtype() not in dtypes:
                    raise CheckpointError(
                        f"{path}: tensor {name!r}: dtype {tensor.get_dtype()} is not read, only {', '.join(dtypes)}"
                    )
                self.dtypes[name] = dtypes[tensor.get_dtype()]
                tensors[name] = Tensor(tuple(tensor.get_shape()), partial(self._read, name))

    def stored(self, name: str, rows: slice | None = None) -> npt.NDArray[Any]:
        """What `read` reads, in the dtype of the file."""
        shape = self.shape(name)
        with self._opened() as file:
            if rows is None:
                stored: npt.NDArray[Any] = file.get_tensor(name)
                return stored
            first, last = row_range(rows, shape[0])
            # The library refuses slices that take nothing.
            return file.get_slice(name)[first:last] if first < last else np.empty((0, *shape[1:]), self.dtypes[name])

    def _read(self, name: str, rows: slice | None) -> Float32:
        return self.stored(name, rows).astype(np.float32, copy=False)

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


class ShardedSafetensors(TensorSource):
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
        super().__init__(index, {name: shards[file].tensor(name) for name, file in weight_map.items()})


def finite(source: TensorSource, label: str) -> TensorSource:
    """The source; its reads raise `CheckpointError` for infinite numbers and NaN. `label`: what errors call it."""

    def checked(name: str) -> Tensor:
        def read(rows: slice | None) -> Float32:
            tensor = source.read(name, rows)
            # The extremes of an array that has a NaN are NaN.
            if tensor.size and not (np.isfinite(tensor.min()) and np.isfinite(tensor.max())):
                raise CheckpointError(f"{label}: tensor {name!r} has numbers that are not finite")
            return tensor

        return Tensor(source.shape(name), read)

    return TensorSource(source.path, {name: checked(name) for name in source.names()})


def renamed(source: TensorSource, names: Mapping[str, str]) -> TensorSource:
    """The source in which some tensors go by another name. `names` maps the name in `source` to the one to be used."""
    return TensorSource(source.path, {names.get(name, name): source.tensor(name) for name in source.names()})


def row_range(rows: slice | None, count: int) -> tuple[int, int]:
    """First row and the one after the last that `rows` (None: all) takes of `count`."""
    first, last, step = (rows or slice(None)).indices(count)
    if step != 1:
        raise ValueError(f"rows are read with step 1, not {step}")
    return first, max(last, first)


def as_norm(name: str, tensor: Tensor) -> Tensor:
    """`tensor`, or for a norm that is stored without its empty axes the same as the reference has it: [1, 1, dim]."""
    if not (name.endswith(".alpha") and tensor.shape and prod(tensor.shape[:-1]) == 1):
        return tensor
    shape = (1, 1, tensor.shape[-1])
    return Tensor(shape, lambda rows: tensor.read(None).reshape(shape)[rows or slice(None)])


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
