"""The tensors of a GGUF file, whole or in pieces, each dequantized as it is read."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path

import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize

from model_repository.checkpoint.weights.gguf_header import GgufError, GgufTensor, Value, read_header
from model_repository.checkpoint.weights.pieces import Pieces
from model_repository.checkpoint.weights.tensors import Float32, Tensor, TensorSource, as_norm, row_range
from model_repository.errors import CheckpointError

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
