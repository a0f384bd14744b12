"""The tensors of a GGUF file, whole or in pieces, each dequantized as it is read.

The `gguf` package's own reader maps one whole file and believes every count it finds: an array that declares 2^40
elements occupies it without end. It takes 1.0 s for 500 tensors and a vocabulary of 32,000, this one 0.04 s. This one
reads the header alone, of a file that may lie in pieces, and refuses what cannot be. Layout: the GGUF specification,
versions 2 and 3.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType
from gguf.gguf_reader import GGUFReader
from gguf.quants import dequantize

from model_repository.checkpoint.weights.pieces import Pieces
from model_repository.checkpoint.weights.tensors import Float32, Shape, Tensor, TensorSource, as_norm, row_range
from model_repository.errors import CheckpointError

MAGIC = b"GGUF"

_VERSIONS = (2, 3)
_MAX_COUNT = 65_536
"""Tensors, or metadata keys; the published file has 475 and a few dozen."""
_MAX_ARRAY = 2**20
"""Elements of a metadata array; a vocabulary may lie in one."""
_MAX_STRING = 2**20
_MAX_AXES = 4
_SCALARS = GGUFReader.gguf_scalar_to_np

Value = str | int | float | bool

_TYPES = frozenset(
    GGMLQuantizationType[name]
    for name in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
)
_CHUNK = 2**22
"""Elements dequantized at a time: the package's intermediate arrays take several times as much."""


class GgufFile(TensorSource):
    """A GGUF file. Only its header is kept in memory; the file is open during a read and not between."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """`paths` are its pieces in order, one if it is whole.

        Reads and checks the header; raises `CheckpointError` naming the file and, where it is one, the tensor.
        """
        path = paths[0]
        self._paths = paths
        try:
            with io.BufferedReader(Pieces(paths)) as file:
                header = read_header(file)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
        except GgufError as error:
            cut = " or in pieces of which the last are missing" if len(paths) > 1 else ""
            raise CheckpointError(f"{path}: no GGUF file{cut}: {error}"[:400]) from None
        for name, tensor in header.tensors.items():
            if tensor.type not in _TYPES:
                read = ", ".join(sorted(kind.name for kind in _TYPES))
                raise CheckpointError(f"{path}: tensor {name!r} is {tensor.type.name}; read are {read}"[:400])
        self.metadata: Mapping[str, Value] = header.metadata
        super().__init__(
            path,
            {
                name: as_norm(name, Tensor(tensor.shape, partial(self._read, name, tensor)))
                for name, tensor in header.tensors.items()
            },
        )

    def _read(self, name: str, tensor: GgufTensor, rows: slice | None) -> Float32:
        shape = tensor.shape
        first, last = row_range(rows, shape[0])
        if prod(shape[:-1]) == 1:
            return self._lines(name, tensor, 0, 1).reshape(shape)[first:last]
        per_row = prod(shape[1:-1])
        return self._lines(name, tensor, first * per_row, last * per_row).reshape(last - first, *shape[1:])

    def _lines(self, name: str, tensor: GgufTensor, first: int, last: int) -> Float32:
        """The tensor as a matrix [prod of the other axes, last axis], from line `first` up to `last`."""
        values = np.empty((last - first, tensor.shape[-1]), np.float32)
        step = max(_CHUNK // max(tensor.shape[-1], 1), 1)
        try:
            with io.BufferedReader(Pieces(self._paths)) as file:
                file.seek(tensor.begin + first * tensor.line_bytes)
                for line in range(0, len(values), step):
                    part = values[line : line + step]
                    content = file.read(len(part) * tensor.line_bytes)
                    if len(content) != len(part) * tensor.line_bytes:
                        raise CheckpointError(f"{self.path}: the file ends inside tensor {name!r}")
                    blocks = np.frombuffer(content, np.uint8).reshape(len(part), tensor.line_bytes)
                    part[...] = dequantize(blocks, tensor.type)
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read: {error.strerror}") from error
        return values


class GgufError(Exception):
    """What is wrong with the file, in words."""


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies. `shape` has the slowest axis first; `begin` counts bytes from the start of the file."""

    type: GGMLQuantizationType
    shape: Shape
    begin: int

    @property
    def line_bytes(self) -> int:
        """Bytes of one line of the last axis; blocks do not cross from one to the next."""
        elements, size = GGML_QUANT_SIZES[self.type]
        return self.shape[-1] // elements * size

    @property
    def bytes(self) -> int:
        return prod(self.shape[:-1]) * self.line_bytes


@dataclass(frozen=True)
class GgufHeader:
    """Single-valued metadata by key (arrays are passed over), and the tensors by name in file order."""

    metadata: Mapping[str, Value]
    tensors: Mapping[str, GgufTensor]


def read_header(file: BinaryIO) -> GgufHeader:
    """Parses the header of `file` and checks that every tensor's data lies in it.

    Raises `GgufError` for anything that is not a header, and `OSError` for a file that cannot be read.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    stream = _Stream(file)
    if stream.take(4) != MAGIC:
        raise GgufError("it does not begin with GGUF")
    version = stream.number(4)
    if version not in _VERSIONS:
        raise GgufError(f"version {version} is not read, only {', '.join(map(str, _VERSIONS))}, little-endian")
    tensor_count, key_count = stream.number(8), stream.number(8)
    if max(tensor_count, key_count) > _MAX_COUNT:
        raise GgufError(f"it declares {tensor_count} tensors and {key_count} keys, more than {_MAX_COUNT}")
    metadata: dict[str, Value] = {}
    for _ in range(key_count):
        key = stream.string()
        value = stream.value(stream.number(4))
        if value is not None:
            metadata[key] = value
    entries = [stream.tensor() for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment not in (1 << bit for bit in range(20)):
        raise GgufError(f"general.alignment must be a power of two, got {alignment!r}"[:200])
    data = -(-file.tell() // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for name, kind, shape, offset in entries:
        if name in tensors:
            raise GgufError(f"tensor {name!r} is there twice")
        tensor = tensors[name] = GgufTensor(kind, shape, data + offset)
        if tensor.begin + tensor.bytes > size:
            raise GgufError(
                f"tensor {name!r} ends at byte {tensor.begin + tensor.bytes}, the file at {size}: truncated"
            )
    return GgufHeader(metadata, tensors)


class _Stream:
    """Takes typed values off a file, one after another."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def take(self, count: int) -> bytes:
        content = self._file.read(count)
        if len(content) != count:
            raise GgufError("the file ends inside its header: truncated")
        return content

    def number(self, size: int) -> int:
        """A natural number of so many bytes."""
        return int.from_bytes(self.take(size), "little")

    def string(self) -> str:
        length = self.number(8)
        if length > _MAX_STRING:
            raise GgufError(f"its header holds a string of {length} bytes")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise GgufError("its header holds a string that is not UTF-8") from None

    def value(self, kind: int) -> Value | None:
        """A metadata value; None for an array, whose elements are passed over."""
        if kind == GGUFValueType.STRING:
            return self.string()
        if kind in _SCALARS:
            dtype = np.dtype(_SCALARS[GGUFValueType(kind)]).newbyteorder("<")
            value: Value = np.frombuffer(self.take(dtype.itemsize), dtype)[0].item()
            return value
        if kind == GGUFValueType.ARRAY:
            element, count = self.number(4), self.number(8)
            if element not in _SCALARS and element != GGUFValueType.STRING:
                raise GgufError(f"its metadata holds an array of type {element}, which is not read")
            if count > _MAX_ARRAY:
                raise GgufError(f"its metadata holds an array of {count} elements, more than {_MAX_ARRAY}")
            for _ in range(count):
                self.value(element)
            return None
        raise GgufError(f"its metadata holds a value of unknown type {kind}")

    def tensor(self) -> tuple[str, GGMLQuantizationType, Shape, int]:
        name, axes = self.string(), self.number(4)
        if not 1 <= axes <= _MAX_AXES:
            raise GgufError(f"tensor {name[:80]!r} has {axes} axes")
        shape = tuple(self.number(8) for _ in range(axes))[::-1]
        code, offset = self.number(4), self.number(8)
        try:
            kind = GGMLQuantizationType(code)
        except ValueError:
            raise GgufError(f"tensor {name[:80]!r} is of unknown type {code}") from None
        if shape[-1] % GGML_QUANT_SIZES[kind][0]:
            raise GgufError(f"tensor {name[:80]!r}: {kind.name} rows cannot have {shape[-1]} elements")
        return name, kind, shape, offset
