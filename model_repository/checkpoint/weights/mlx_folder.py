"""The tensors of an MLX folder: three safetensors files, in which matrices may be quantized to 2, 4 or 8 bits.

A quantized matrix `X.weight` is uint32 [rows, columns · bits / 32], values packed from the low bits up, and has the
siblings `X.scales` and `X.biases` [rows, columns / group]: value = scale · q + bias.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model_repository.checkpoint.weights.tensors import (
    Float32,
    SafetensorsFile,
    Shape,
    Tensor,
    TensorSource,
    as_norm,
    row_range,
)
from model_repository.errors import CheckpointError

MLX_FILES = ("temporal.safetensors", "depformer.safetensors", "embeddings.safetensors")

_GROUP = 64
_BITS = (2, 4, 8)
_MAX_STEPS = 1024
_CHUNK = 2**22
"""Elements dequantized at a time."""

_SPELLED = re.compile(r"(?P<stem>.+)[._](?P<part>weight|scales|biases)")
_ALL_STEPS = re.compile(r"depformer\.layers\.\d+\.gating\.linear_(in|out)\.weight")


@dataclass(frozen=True)
class _Stored:
    """Where a tensor lies: rows `first` to `last` of `key`, whose siblings' keys are there if it is quantized."""

    file: SafetensorsFile
    key: str
    shape: Shape
    scales: str | None = None
    biases: str | None = None
    first: int = 0

    def read(self, rows: slice | None) -> Float32:
        """See `Tensor.read`."""
        first, last = row_range(rows, self.shape[0])
        rows = slice(self.first + first, self.first + last)
        if self.scales is None or self.biases is None:
            return self.file.read(self.key, rows)
        values = np.empty((last - first, self.shape[1]), np.float32)
        step = max(_CHUNK // max(self.shape[1], 1), 1)
        for begin in range(0, len(values), step):
            part = slice(rows.start + begin, min(rows.start + begin + step, rows.stop))
            packed = self.file.stored(self.key, part)
            scales, biases = self.file.read(self.scales, part), self.file.read(self.biases, part)
            values[begin : begin + len(packed)] = dequantized(packed, scales, biases)
        return values


class MlxFolder(TensorSource):
    """The language model's tensors by the reference's names. Only headers are kept in memory."""

    def __init__(self, folder: Path) -> None:
        """Reads the three headers; raises `CheckpointError` naming the file and the tensor that cannot be."""
        tensors: dict[str, _Stored] = {}
        for name in MLX_FILES:
            for tensor, stored in _tensors(SafetensorsFile(folder / name, integers=True)).items():
                if tensor in tensors:
                    raise CheckpointError(
                        f"{folder / name}: tensor {tensor!r} is in {tensors[tensor].file.path.name} too"
                    )
                tensors[tensor] = stored
        super().__init__(
            folder, {name: as_norm(name, Tensor(stored.shape, stored.read)) for name, stored in tensors.items()}
        )


def dequantized(packed: npt.NDArray[np.uint32], scales: Float32, biases: Float32) -> Float32:
    """[rows, words] uint32 and two [rows, groups] as float32 [rows, 64 · groups]; the bits follow from the shapes."""
    rows, groups = scales.shape
    bits = 32 * packed.shape[1] // (_GROUP * groups)
    octets = np.ascontiguousarray(packed, "<u4").view(np.uint8)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    values = (octets[:, :, None] >> shifts) & np.uint8(2**bits - 1)
    grouped: Float32 = values.reshape(rows, groups, _GROUP).astype(np.float32)
    grouped *= scales[:, :, None]
    grouped += biases[:, :, None]
    return grouped.reshape(rows, groups * _GROUP)


def _tensors(file: SafetensorsFile) -> dict[str, _Stored]:
    """The file's tensors by the reference's names, quantized ones put together and those of all steps taken apart."""
    siblings = {}
    for key in file.names():
        match = _SPELLED.fullmatch(key)
        if match and match["part"] != "weight":
            siblings[match["stem"], match["part"]] = key
    found: dict[str, _Stored] = {}
    for key in file.names():
        match = _SPELLED.fullmatch(key)
        if match and match["part"] != "weight":
            continue
        name = _reference_name(match["stem"]) if match else key
        if name in found:
            raise CheckpointError(f"{file.path}: tensor {name!r} is there in two spellings")
        found[name] = _stored(file, key, match["stem"] if match else key, siblings)
    return _taken_apart(file.path, found)


def _reference_name(stem: str) -> str:
    """The reference's spelling: `in_proj_weight` is a parameter, every other matrix the `weight` of a module."""
    return f"{stem}_weight" if stem.endswith(".in_proj") else f"{stem}.weight"


def _stored(file: SafetensorsFile, key: str, stem: str, siblings: Mapping[tuple[str, str], str]) -> _Stored:
    scales, biases = siblings.get((stem, "scales")), siblings.get((stem, "biases"))
    shape = file.shape(key)
    if file.dtypes[key] != np.uint32 and scales is None and biases is None:
        if file.dtypes[key].kind in "iu":
            raise CheckpointError(f"{file.path}: tensor {key!r} is of integers")
        return _Stored(file, key, shape)
    if file.dtypes[key] != np.uint32 or scales is None or biases is None:
        raise CheckpointError(f"{file.path}: tensor {key!r}: a quantized matrix is uint32 and has scales and biases")
    groups = file.shape(scales)
    columns = groups[-1] * _GROUP if len(groups) == 2 else 0
    possible = [(shape[0], columns * bits // 32) for bits in _BITS] if len(shape) == 2 else []
    if not columns or shape not in possible or groups[0] != shape[0] or file.shape(biases) != groups:
        sizes = f"weight {list(shape)}, scales {list(groups)}, biases {list(file.shape(biases))}"
        expected = f"no matrix of {', '.join(map(str, _BITS))} bits in groups of {_GROUP}"
        raise CheckpointError(f"{file.path}: tensor {key!r} is {expected}: {sizes}")
    if file.dtypes[scales].kind in "iu" or file.dtypes[biases].kind in "iu":
        raise CheckpointError(f"{file.path}: tensor {key!r}: its scales and biases must be floats")
    return _Stored(file, key, (shape[0], columns), scales, biases)


def _taken_apart(path: Path, found: Mapping[str, _Stored]) -> dict[str, _Stored]:
    """The same tensors, the feed-forwards of all depth steps, which may lie below one another, replaced by each's."""
    tensors: dict[str, _Stored] = {}
    for name, stored in found.items():
        match = _ALL_STEPS.fullmatch(name)
        if not match:
            tensors[name] = stored
            continue
        inward, outward = (found.get(name.replace(f"linear_{match[1]}", f"linear_{way}")) for way in ("in", "out"))
        steps = _steps(inward, outward)
        if not steps:
            raise CheckpointError(f"{path}: tensor {name!r} does not hold the feed-forwards of a number of steps")
        rows = stored.shape[0] // steps
        for step in range(steps):
            part = _Stored(stored.file, stored.key, (rows, stored.shape[1]), stored.scales, stored.biases, step * rows)
            tensors[name.replace(".gating.", f".gating.{step}.")] = part
    return tensors


def _steps(inward: _Stored | None, outward: _Stored | None) -> int:
    """Depth steps whose `linear_in` [steps · 2 · hidden, dim] and `linear_out` [steps · dim, hidden] it is, or 0."""
    if inward is None or outward is None or len(inward.shape) != 2 or len(outward.shape) != 2:
        return 0
    dim, hidden = inward.shape[1], outward.shape[1]
    steps = outward.shape[0] // max(dim, 1)
    fits = inward.shape[0] == steps * 2 * hidden and outward.shape[0] == steps * dim and steps <= _MAX_STEPS
    return steps if fits else 0
