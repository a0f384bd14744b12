"""Block quantizers: what ONNX Runtime multiplies with is what was stored, and searching pays."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from model_repository.graph.builder import ROWS, Graph
from model_repository.graph.weights import GPU_BLOCK, Weights
from model_repository.quantize.blocks import BLOCK, Blocks, Layout, quantize, rounded_error
from model_repository.quantize.config import QuantizationConfig
from model_repository.variants import Precision
from tests.model_repository.arrays import tensors_of


def values(blocks: Blocks, columns: int, bits: int) -> np.ndarray:
    """[N, K] as MatMulNBits' documentation defines it."""
    rows, count = blocks.scales.shape
    codes, zeros = blocks.codes, np.full((rows, count), 2.0 ** (bits - 1))
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1)
    if blocks.zeros is not None:
        zeros = np.stack([blocks.zeros & 15, blocks.zeros >> 4], axis=-1).reshape(rows, -1)[:, :count]
    weight = (codes.reshape(rows, count, -1) - zeros[..., None].astype(np.float64)) * blocks.scales[..., None]
    return weight.reshape(rows, -1)[:, :columns]


def gaussian(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns), np.float32)


def relative(weight: np.ndarray, rounded: np.ndarray, importance: np.ndarray | float = 1.0) -> float:
    return float(np.sqrt((importance * (rounded - weight) ** 2).sum() / (importance * weight**2).sum()))


@pytest.mark.parametrize(("bits", "bound"), [(8, 0.007), (4, 0.099)])
@pytest.mark.parametrize("columns", [BLOCK, 3 * BLOCK, 5 * BLOCK - 40])
def test_errors_are_those_of_the_stored_numbers(bits, bound, columns):
    weight = gaussian(300, columns)
    blocks, error = quantize(weight, bits)
    rounded = values(blocks, columns, bits)
    assert error.bits == bits
    assert error.largest == pytest.approx(np.abs(rounded - weight).max(), rel=1e-4)
    padding = -(-columns // BLOCK) * BLOCK / columns
    assert error.mean == pytest.approx(np.abs(rounded - weight).mean(), rel=1e-4 * padding)
    assert error.relative == pytest.approx(relative(weight, rounded), rel=1e-4)
    assert error.relative < bound


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("deviation", [1e-6, 3e-8, 1.0, 1e4])
def test_errors_are_those_of_scales_in_the_type_of_the_graph(tmp_path: Path, bits: int, deviation: float):
    """float16 has no numbers below 6e-8, so scales of small weights are rounded; bfloat16 has."""
    weight = gaussian(40, 2 * BLOCK) * np.float32(deviation)
    precision = Precision.INT4 if bits == 4 else Precision.INT8
    for activations, scale_type in ((Precision.FP16, np.float16), (Precision.BF16, ml_dtypes.bfloat16)):
        graph = Graph("product")
        x = graph.input("x", ir.DataType.from_numpy(np.dtype(scale_type)), [ROWS, 2 * BLOCK])
        weights = Weights(graph, tensors_of({"w": weight}), QuantizationConfig(precision), activations)
        graph.output("y", weights.linear(x, "w"))
        found = graph.save(tmp_path / "model.onnx")["w"]
        stored = {
            name: tensor.const_value.numpy()
            for name, tensor in ir.load(tmp_path / "model.onnx").graph.initializers.items()
        }
        blocks = Blocks(stored["w.codes"], stored["w.scales"].astype(np.float32), stored.get("w.zeros"))
        assert stored["w.scales"].dtype == scale_type
        assert stored["w.scales"].shape == (40, 2 * BLOCK // GPU_BLOCK)
        assert blocks.zeros is None, "kernels of a GPU unpack blocks with zero points"
        assert found.relative == pytest.approx(relative(weight, values(blocks, 2 * BLOCK, bits)), rel=1e-3)
        if activations is Precision.BF16 or deviation >= 1:
            assert found.relative < 0.1


def test_four_bits_are_better_than_rounding_to_nearest():
    """At the same size (symmetric, the largest magnitude to 7), and more so where a block is one-sided."""
    weight = gaussian(64, 8 * BLOCK) + np.repeat(gaussian(64, 8, seed=1), BLOCK, axis=1)
    blocked = weight.reshape(64, -1, BLOCK)
    scales = np.abs(blocked).max(-1, keepdims=True) / 7
    nearest = (np.rint(blocked / scales).clip(-8, 7) * scales).reshape(weight.shape)
    assert quantize(weight, 4)[1].relative < 0.75 * relative(weight, nearest)


def test_short_blocks_without_zero_points_are_no_worse_than_long_ones_with_them():
    weight = gaussian(64, 8 * BLOCK)
    short = quantize(weight, 4, layout=Layout(GPU_BLOCK, zero_points=False))[1]
    assert short.relative < quantize(weight, 4)[1].relative


def test_columns_that_carry_more_are_rounded_better():
    weight, importance = gaussian(64, 4 * BLOCK), np.ones(4 * BLOCK, np.float32)
    importance[::16] = 100
    plain, weighted = (values(quantize(weight, 4, given)[0], 4 * BLOCK, 4) for given in (None, importance))
    assert relative(weight, weighted, importance) < 0.9 * relative(weight, plain, importance)


@pytest.mark.parametrize("bits", [4, 8])
def test_nothing_and_constants_survive(bits):
    weight = np.zeros((3, 2 * BLOCK), np.float32)
    weight[1] = 0.5
    weight[2, 7] = -3
    rounded = values(quantize(weight, bits)[0], 2 * BLOCK, bits)
    np.testing.assert_allclose(rounded, weight, atol=0.02)
    assert not rounded[0].any()


@pytest.mark.parametrize(
    ("precision", "tolerance"),
    [(Precision.FP32, 1e-5), (Precision.FP16, 1e-3), (Precision.INT8, 2e-2), (Precision.INT4, 2e-2)],
)
def test_the_graph_multiplies_with_the_stored_numbers(tmp_path: Path, precision, tolerance):
    """Beyond the weight's rounding, 8 and 4 bits round what is multiplied to 8 bits."""
    rows, columns = 96, 2 * BLOCK + 16
    weight, x = gaussian(rows, columns), gaussian(5, columns, seed=1)
    graph = Graph("product")
    taken = graph.input("x", ir.DataType.FLOAT, [ROWS, columns])
    weights = Weights(graph, tensors_of({"w": weight}), QuantizationConfig(precision))
    graph.output("y", weights.linear(taken, "w"))
    errors = graph.save(tmp_path / "model.onnx")
    session = ort.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    stored = weight.astype(np.float64)
    if precision in (Precision.INT8, Precision.INT4):
        bits = 4 if precision is Precision.INT4 else 8
        stored = values(quantize(weight, bits)[0], columns, bits)
    assert relative(x @ stored.T, y) < tolerance
    assert ("w" in errors) == (precision is not Precision.FP32)


def test_sixteen_bits_report_their_error():
    weight = gaussian(8, 64)
    error = rounded_error(weight, weight.astype(np.float16), 16)
    assert error.bits == 16
    assert 0 < error.relative < 5e-4
