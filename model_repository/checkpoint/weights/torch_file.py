"""Reads the tensors of a `torch.save`d dictionary without torch, and without running anything the file says to run.

Such a file is a zip of uncompressed records: `PREFIX/data.pkl` (pickle protocol 2) and one `PREFIX/data/KEY` per
storage. The pickle is not given to an unpickler: its opcodes are walked by a small interpreter that knows only those
which a dictionary of tensors needs, and only three kinds of global. Anything else is refused. `pickle.Unpickler` with
`find_class` and `persistent_load` runs no code either, but 128 bytes (a key of nested tuples, which it hashes) occupy
it for 2 s and each 5 bytes more for twice as long, and 9 bytes (an index of its memo) make it take 4 GB.
"""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import numpy.typing as npt

from model_repository.errors import CheckpointError

MAX_FILE_BYTES = 256 * 2**20
"""A published voice is under a megabyte; one of four minutes would be 25."""

_MAX_PICKLE_BYTES = 2**20
_MAX_MESSAGE = 300

_STORAGES: dict[str, np.dtype[Any]] = {
    "torch DoubleStorage": np.dtype("<f8"),
    "torch FloatStorage": np.dtype("<f4"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch LongStorage": np.dtype("<i8"),
    "torch IntStorage": np.dtype("<i4"),
    "torch ShortStorage": np.dtype("<i2"),
    "torch CharStorage": np.dtype("<i1"),
    "torch ByteStorage": np.dtype("<u1"),
}
_REBUILD = "torch._utils _rebuild_tensor_v2"
_ORDERED_DICT = "collections OrderedDict"
_MARK = object()
_UNREADABLE = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
)


def read_torch_tensors(source: Path | bytes, label: str) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a saved dictionary, by key, as arrays of their own dtype (bfloat16 through `ml_dtypes`).

    `source` is a path or a file's content, `label` how messages call it. Raises `CheckpointError` for everything
    that is not a plain dictionary of dense tensors whose records are all there and of the declared sizes.
    """
    try:
        if isinstance(source, bytes):
            return _read(io.BytesIO(source), label)
        with source.open("rb") as file:
            return _read(file, label)
    except _RefusedError as error:
        raise CheckpointError(f"{label}: {error}"[:_MAX_MESSAGE]) from None
    except _UNREADABLE as error:
        raise CheckpointError(f"{label}: truncated or not a PyTorch zip file: {error}") from error


class _RefusedError(Exception):
    """What is wrong with the file, for the message."""


@dataclass(frozen=True)
class _Global:
    """A name the pickle asked for; it is never imported."""

    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype[Any]
    count: int


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _read(file: BinaryIO, label: str) -> dict[str, npt.NDArray[Any]]:
    size = file.seek(0, io.SEEK_END)
    if size > MAX_FILE_BYTES:
        raise _RefusedError(f"{size} bytes are more than the {MAX_FILE_BYTES} that are read")
    if not zipfile.is_zipfile(file):
        raise _RefusedError("truncated or not a PyTorch zip file (files of PyTorch before 1.6 are not read)")
    with zipfile.ZipFile(file) as archive:
        records = _Records(archive)
        pickle = records.read("data.pkl")
        if len(pickle) > _MAX_PICKLE_BYTES:
            raise _RefusedError("its pickle is larger than a dictionary of tensors needs")
        tensors = _interpret(pickle)
        # Tensors may share a storage, and each is copied out of it.
        if sum(prod(tensor.shape) * tensor.storage.dtype.itemsize for tensor in tensors.values()) > MAX_FILE_BYTES:
            raise _RefusedError("its tensors are larger than the file")
        return {name: _array(records, name, tensor) for name, tensor in tensors.items()}


class _Records:
    """The archive's records, by name without the common prefix. Only uncompressed ones, so none can blow up."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        roots = [name.removesuffix("data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(roots) != 1:
            raise _RefusedError(f"holds {len(roots)} data.pkl records, expected one")
        self._archive = archive
        self._prefix = roots[0]
        self.little_endian = self.read("byteorder") != b"big" if "byteorder" in self else True

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._archive.NameToInfo

    def read(self, name: str) -> bytes:
        if name not in self:
            raise _RefusedError(f"record {name!r} is missing")
        info = self._archive.getinfo(self._prefix + name)
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise _RefusedError(f"record {name!r} is compressed")
        return self._archive.read(info)


def _array(records: _Records, name: str, tensor: _Tensor) -> npt.NDArray[Any]:
    storage = tensor.storage
    content = records.read(f"data/{storage.key}")
    if len(content) != storage.count * storage.dtype.itemsize:
        raise _RefusedError(f"tensor {name!r}: {len(content)} bytes do not hold {storage.count} of {storage.dtype}")
    count = prod(tensor.shape)
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    # A view that repeats elements (stride 0) could declare any size out of one byte: it must fit as if it did not.
    if count > storage.count or (count and last >= storage.count):
        raise _RefusedError(f"tensor {name!r}: shape {list(tensor.shape)} does not fit a storage of {storage.count}")
    elements = np.frombuffer(content, storage.dtype if records.little_endian else storage.dtype.newbyteorder(">"))
    if not count:
        return np.empty(tensor.shape, storage.dtype)
    view = np.lib.stride_tricks.as_strided(
        elements[tensor.offset :], tensor.shape, [stride * elements.itemsize for stride in tensor.strides]
    )
    return view.astype(storage.dtype, order="C")


def _interpret(pickle: bytes) -> dict[str, _Tensor]:
    """Walks the opcodes of a protocol 2 pickle; the result must be a dictionary from names to tensors."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        items: list[Any] = []
        while (item := stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    try:
        for opcode, argument, _ in pickletools.genops(pickle):
            match opcode.name:
                case "PROTO":
                    pass
                case "MARK":
                    stack.append(_MARK)
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_TUPLE":
                    stack.append(())
                case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1":
                    stack.append(argument)
                case "NEWTRUE" | "NEWFALSE" | "NONE":
                    stack.append({"NEWTRUE": True, "NEWFALSE": False, "NONE": None}[opcode.name])
                case "TUPLE":
                    stack.append(tuple(since_mark()))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    count = int(opcode.name[-1])
                    stack[-count:] = [tuple(stack[-count:])]
                case "BINPUT" | "LONG_BINPUT":
                    memo[int(argument)] = stack[-1]  # type: ignore[arg-type]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[int(argument)])  # type: ignore[arg-type]
                case "GLOBAL":
                    stack.append(_known_global(str(argument)))
                case "BINPERSID":
                    stack.append(_storage(stack.pop()))
                case "REDUCE":
                    arguments = stack.pop()
                    stack.append(_reduce(stack.pop(), arguments))
                case "SETITEM":
                    value, key = stack.pop(), stack.pop()
                    _set_items(stack[-1], [key, value])
                case "SETITEMS":
                    items = since_mark()
                    _set_items(stack[-1], items)
                case "STOP":
                    break
                case other:
                    raise _RefusedError(f"its pickle uses {other}, which a dictionary of tensors does not need")
        (result,) = stack
    except (IndexError, KeyError, ValueError, TypeError, UnicodeError) as error:
        raise _RefusedError(f"its pickle is malformed ({type(error).__name__})") from None
    if not isinstance(result, dict) or not all(isinstance(tensor, _Tensor) for tensor in result.values()):
        raise _RefusedError("does not hold a plain dictionary of tensors")
    return result


def _known_global(name: str) -> _Global:
    if name not in (_REBUILD, _ORDERED_DICT) and name not in _STORAGES:
        raise _RefusedError(f"its pickle asks for {name.replace(' ', '.')!r}, which is not allowed")
    return _Global(name)


def _storage(persistent_id: Any) -> _Storage:
    """A storage from torch's persistent id ("storage", type, record key, device, element count)."""
    match persistent_id:
        case ("storage", _Global(name), str(key), str(), int(count)) if name in _STORAGES and count >= 0:
            return _Storage(key, _STORAGES[name], count)
    raise _RefusedError("its pickle names something that is not a tensor's storage")


def _reduce(function: Any, arguments: Any) -> _Tensor | dict[Any, Any]:
    match function, arguments:
        case _Global(name), () if name == _ORDERED_DICT:
            return {}
        case _Global(name), (_Storage() as storage, int(offset), tuple(shape), tuple(strides), bool(), dict(), *_) if (
            name == _REBUILD
        ):
            numbers = (offset, *shape, *strides)
            if len(shape) == len(strides) <= 8 and all(type(n) is int and 0 <= n < 2**40 for n in numbers):
                return _Tensor(storage, offset, shape, strides)
            raise _RefusedError("its pickle describes a tensor that cannot be")
    raise _RefusedError("its pickle calls something that is not a tensor")


def _set_items(target: Any, items: list[Any]) -> None:
    if not isinstance(target, dict):
        raise _RefusedError("its pickle sets items of something that is not a dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str):
            raise _RefusedError("does not hold a plain dictionary of tensors")
        target[key] = value
