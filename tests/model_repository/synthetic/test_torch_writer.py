"""What the writer writes, the reader reads; the same arrays make the same bytes."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from model_repository.checkpoint.weights.torch_file import read_torch_tensors
from model_repository.synthetic.torch_writer import write_torch_tensors


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.int32])
def test_arrays_survive(tmp_path: Path, dtype: type) -> None:
    arrays = {"a": np.arange(24).reshape(2, 1, 3, 4).astype(dtype), "ü": (np.arange(70_000) % 2000).astype(dtype)}
    write_torch_tensors(tmp_path / "x.pt", arrays)
    read = read_torch_tensors(tmp_path / "x.pt", "x.pt")
    assert list(read) == ["a", "ü"]
    for name, array in arrays.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


def test_a_transposed_array_survives(tmp_path: Path) -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4).T
    write_torch_tensors(tmp_path / "x.pt", {"a": array})
    np.testing.assert_array_equal(read_torch_tensors(tmp_path / "x.pt", "x.pt")["a"], array)


def test_it_is_deterministic(tmp_path: Path) -> None:
    for name in ("x.pt", "y.pt"):
        write_torch_tensors(tmp_path / name, {"a": np.arange(5)})
    assert (tmp_path / "x.pt").read_bytes() == (tmp_path / "y.pt").read_bytes()
