"""Safetensors are read lazily, in every float dtype, and refused with the file's and tensor's name when broken."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from model_repository.checkpoint.weights.tensors import (
    SafetensorsFile,
    ShardedSafetensors,
    read_json_object,
    renamed,
)
from model_repository.errors import CheckpointError


def write_raw(path: Path, header: Any, data: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def described() -> dict[str, Any]:
    return {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_every_float_dtype_is_read_as_float32(tmp_path: Path, dtype: Any) -> None:
    stored = np.linspace(-3, 3, 24).reshape(4, 3, 2).astype(dtype)
    safetensors.numpy.save_file({"a": np.zeros(5, dtype), "w": stored}, tmp_path / "f")
    file = SafetensorsFile(tmp_path / "f")
    assert set(file.names()) == {"a", "w"}
    assert "w" in file
    assert "x" not in file
    assert file.shape("w") == (4, 3, 2)
    read = file.read("w")
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, stored.astype(np.float32))


@pytest.mark.parametrize("rows", [slice(0, 2), slice(2, 4), slice(1, None), slice(3, 3), slice(-1, None)])
def test_rows_are_a_slice_of_the_first_axis(tmp_path: Path, rows: slice) -> None:
    stored = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    safetensors.numpy.save_file({"a": np.ones(7, np.float32), "w": stored}, tmp_path / "f")
    np.testing.assert_array_equal(SafetensorsFile(tmp_path / "f").read("w", rows), stored[rows])


def test_rows_are_read_without_the_rest(tmp_path: Path) -> None:
    """A hole of 4 GiB would not fit in memory as float32; its last row does."""
    rows, width = 2**20, 2**10
    shape = {"dtype": "F32", "shape": [rows, width], "data_offsets": [0, rows * width * 4]}
    path = write_raw(tmp_path / "f", {"w": shape})
    with path.open("r+b") as file:
        size = path.stat().st_size
        file.seek(size + (rows - 1) * width * 4)
        file.write(np.full(width, 3, "<f4").tobytes())
    assert (SafetensorsFile(path).read("w", slice(rows - 1, rows)) == np.full((1, width), 3)).all()


def test_scalars_and_empty_tensors(tmp_path: Path) -> None:
    safetensors.numpy.save_file({"s": np.array(4, np.float32), "e": np.zeros((0, 3), np.float32)}, tmp_path / "f")
    file = SafetensorsFile(tmp_path / "f")
    assert file.read("s") == 4
    assert file.read("e").shape == (0, 3)


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    file = SafetensorsFile(write_raw(tmp_path / "f", described(), bytes(8)))
    with pytest.raises(CheckpointError, match=r"f: no tensor 'x\.weight'"):
        file.read("x.weight")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x05\x00\x00",
        struct.pack("<Q", 100) + b"{}",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 3) + b"{]}",
        struct.pack("<Q", 200_000) + b"[" * 200_000,
        struct.pack("<Q", 2) + b"[]",
    ],
)
def test_a_broken_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"broken\.safetensors: truncated or no safetensors file"):
        SafetensorsFile(tmp_path / "broken.safetensors")


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": ["F32"]},
        {"shape": [-2]},
        {"shape": "2"},
        {"shape": [True]},
        {"data_offsets": [0]},
        {"data_offsets": [8, 0]},
        {"shape": [3]},
        {"shape": [4], "data_offsets": [0, 16]},
    ],
)
def test_a_tensor_that_does_not_fit_its_file_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = write_raw(tmp_path / "f", {"w": described()["w"] | changes}, bytes(8))
    with pytest.raises(CheckpointError, match="f: truncated or no safetensors file"):
        SafetensorsFile(path)


@pytest.mark.parametrize(("dtype", "integers"), [("I8", True), ("U64", True), ("I64", False)])
def test_a_dtype_that_is_not_read_is_named_with_its_tensor(tmp_path: Path, dtype: str, integers: bool) -> None:
    shape = [8] if dtype == "I8" else [1]
    path = write_raw(tmp_path / "f", {"w": described()["w"] | {"dtype": dtype, "shape": shape}}, bytes(8))
    with pytest.raises(CheckpointError, match=f"f: tensor 'w': dtype {dtype} is not read"):
        SafetensorsFile(path, integers)


def test_a_file_cut_short_after_opening_is_noticed(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "f", described(), bytes(8))
    file = SafetensorsFile(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="f: truncated"):
        file.read("w")
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        file.read("w")


def write_shards(folder: Path, weight_map: Any) -> Path:
    safetensors.numpy.save_file({"a": np.arange(3, dtype=np.float32)}, folder / "one.safetensors")
    safetensors.numpy.save_file({"b": np.arange(8, dtype=np.float32).reshape(4, 2)}, folder / "two.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def test_shards_read_as_one_file(tmp_path: Path) -> None:
    tensors = ShardedSafetensors(write_shards(tmp_path, {"a": "one.safetensors", "b": "two.safetensors"}))
    assert list(tensors.names()) == ["a", "b"]
    assert "a" in tensors
    assert "c" not in tensors
    assert tensors.shape("b") == (4, 2)
    np.testing.assert_array_equal(tensors.read("b", slice(1, 2)), [[2, 3]])
    with pytest.raises(CheckpointError, match=r"index\.json: no tensor 'c'"):
        tensors.shape("c")


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "three.safetensors"}, "three.safetensors: cannot be read: No such file"),
        ({"b": "one.safetensors"}, "one.safetensors: no tensor 'b'"),
        ({"a": "../one.safetensors"}, "not a plain file name"),
        ({"a": "/etc/passwd"}, "not a plain file name"),
        ({"a": ".."}, "not a plain file name"),
        ({"a": 1}, "'weight_map' must map"),
        ([], "'weight_map' must map"),
    ],
)
def test_an_index_that_leads_nowhere_is_refused(tmp_path: Path, weight_map: Any, message: str) -> None:
    index = write_shards(tmp_path, weight_map)
    with pytest.raises(CheckpointError, match=message):
        ShardedSafetensors(index)


def test_renamed_tensors_are_found_by_their_new_name(tmp_path: Path) -> None:
    file = SafetensorsFile(write_raw(tmp_path / "f", described(), np.array([1, 2], "<f4").tobytes()))
    tensors = renamed(file, {"w": "new"})
    assert list(tensors.names()) == ["new"]
    assert "new" in tensors
    assert tensors.shape("new") == (2,)
    np.testing.assert_array_equal(tensors.read("new", slice(1, 2)), [2])


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "not valid JSON"), (b"\xff\xfe\xff", "not valid JSON"), (b"[1]", "must hold a JSON object, got list")],
)
def test_json_that_is_no_object_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_json_object(tmp_path / "config.json")
