"""Writes a dictionary of arrays as the zip that `torch.save` would write, without torch: what `torch_file` reads."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_ROOT = "voice"
_TIMESTAMP = (1980, 1, 1, 0, 0, 0)
"""The same for every record of every file, so that equal tensors make equal bytes."""

_STORAGES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
}


def write_torch_tensors(path: Path, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
    """Writes the arrays as contiguous tensors, loadable with `torch.load(path, weights_only=True)`.

    Deterministic: the same arrays give the same bytes. Raises `KeyError` for a dtype torch storages are not written in.
    """
    records = {"data.pkl": _pickle(tensors), "byteorder": b"little"}
    for key, tensor in enumerate(tensors.values()):
        records[f"data/{key}"] = np.ascontiguousarray(tensor).tobytes()
    records["version"] = b"3\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in records.items():
            archive.writestr(zipfile.ZipInfo(f"{_ROOT}/{name}", _TIMESTAMP), content)


def _pickle(tensors: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Protocol 2: a dictionary whose values call `_rebuild_tensor_v2` on a storage named by persistent id."""
    items = b"".join(_text(name) + _tensor(str(key), array) for key, (name, array) in enumerate(tensors.items()))
    return b"\x80\x02}(" + items + b"u."


def _tensor(key: str, array: npt.NDArray[Any]) -> bytes:
    strides = [stride // array.itemsize for stride in np.ascontiguousarray(array).strides]
    storage = _tuple(
        _text("storage"),
        _global("torch", _STORAGES[array.dtype.name]),
        _text(key),
        _text("cpu"),
        _integer(array.size),
    )
    hooks = _global("collections", "OrderedDict") + b")R"
    shape = _tuple(*map(_integer, array.shape))
    arguments = _tuple(storage + b"Q", _integer(0), shape, _tuple(*map(_integer, strides)), b"\x89", hooks)
    return _global("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def _text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _integer(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"
