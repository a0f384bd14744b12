"""Rows of embedding tables are those that were stored, in every precision."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from model_repository.graph.builder import ROWS, Float32, Graph
from model_repository.graph.weights import Weights
from model_repository.quantize.blocks import BLOCK, TensorError
from model_repository.quantize.config import QuantizationConfig
from model_repository.variants import Precision
from tests.model_repository.arrays import tensors_of

INDICES = np.array([[0, 4], [5, 11], [3, 3]])


def parts(width: int) -> list[Float32]:
    random = np.random.default_rng(0)
    return [random.standard_normal((rows, width)).astype(np.float32) for rows in (5, 7)]


def rows(
    tmp_path: Path, quantization: QuantizationConfig, stacked: list[Float32]
) -> tuple[Float32, dict[str, TensorError]]:
    """Those of `INDICES`, by the graph, and the errors of storing the table."""
    graph = Graph("lookup")
    indices = graph.input("indices", ir.DataType.INT64, [ROWS, 2])
    weights = Weights(graph, tensors_of({"t": stacked[0], "u": stacked[1]}), quantization)
    graph.output("y", weights.embedding(["t", "u"], indices))
    errors = graph.save(tmp_path / "model.onnx")
    session = ort.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"indices": INDICES})
    return found, errors


@pytest.mark.parametrize("width", [BLOCK, 2 * BLOCK, 32, BLOCK + 16])
def test_eight_bits_have_a_scale_for_every_block_of_a_row(tmp_path: Path, width: int):
    stacked = parts(width)
    stacked[1][4] *= 1000  # row 9, which no other row pays for
    found, errors = rows(tmp_path, QuantizationConfig(Precision.INT4), stacked)
    expected = np.concatenate(stacked)[INDICES]
    for start in range(0, width, BLOCK):
        block = expected[..., start : start + BLOCK]
        scales = (np.abs(block).max(-1, keepdims=True) / 127).astype(ml_dtypes.bfloat16).astype(np.float32)
        assert (np.abs(found[..., start : start + BLOCK] - block) <= 0.5001 * scales).all()
    assert errors["t.stacked"].bits == 8
    assert 0 < errors["t.stacked"].relative < 0.01


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [(Precision.FP32, np.float32), (Precision.FP16, ml_dtypes.bfloat16), (Precision.INT8, ml_dtypes.bfloat16)],
)
def test_other_tables_are_as_published(tmp_path: Path, precision: Precision, dtype: type):
    stacked = parts(48)
    found, errors = rows(tmp_path, QuantizationConfig(precision), stacked)
    assert np.array_equal(found, np.concatenate(stacked).astype(dtype).astype(np.float32)[INDICES])
    assert {error.bits for error in errors.values()} == (set() if dtype is np.float32 else {16})


def test_beside_four_bits_a_number_takes_a_byte():
    graph, stacked = Graph("lookup"), parts(2 * BLOCK)
    indices = graph.input("indices", ir.DataType.INT64, [ROWS, 1])
    source = tensors_of({"t": stacked[0], "u": stacked[1]})
    Weights(graph, source, QuantizationConfig(Precision.INT4)).embedding(["t", "u"], indices)
    assert graph.weight_bytes == 12 * (2 * BLOCK + 2 * 4)
