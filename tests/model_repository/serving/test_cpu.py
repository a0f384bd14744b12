"""The kernels for block-quantized products answer what ONNX Runtime's own do, row by row; and where they are not, it
does.
"""

from __future__ import annotations

import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from model_repository.build import build_repository
from model_repository.graph.builder import ROWS, Graph
from model_repository.graph.weights import OWN_DOMAIN, Weights
from model_repository.quantize.blocks import BLOCK, Blocks, quantize
from model_repository.quantize.config import QuantizationConfig
from model_repository.serving import cpu
from model_repository.variants import Precision
from tests.conftest import GOLDEN
from tests.model_repository.arrays import tensors_of

needs_kernels = pytest.mark.skipif(cpu.missing_for_kernels() is not None, reason=str(cpu.missing_for_kernels()))

BITS = {4: Precision.INT4, 8: Precision.INT8}
SIZES = [(96, 2 * BLOCK), (37, 3 * BLOCK + 16), (16, 5), (200, BLOCK + 1)]
"""Rows and columns of matrices: whole tiles and blocks, and such that are not."""


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def write(folder: Path, bits: int, weight: np.ndarray) -> Path:
    """A graph of one product, x [rows, 1, K] -> y."""
    graph = Graph("product")
    x = graph.input("x", ir.DataType.FLOAT, [ROWS, 1, weight.shape[1]])
    weights = Weights(graph, tensors_of({"w": weight}), QuantizationConfig(BITS[bits]))
    graph.output("y", weights.linear(x, "w"))
    graph.save(folder / "model.onnx")
    return folder / "model.onnx"


def answer(session: ort.InferenceSession, x: np.ndarray) -> np.ndarray:
    return session.run(["y"], {"x": x[:, None]})[0][:, 0]


def without_kernels(model: Path, monkeypatch: pytest.MonkeyPatch) -> ort.InferenceSession:
    with monkeypatch.context() as patched:
        patched.setenv("PERSONAPLEX_CPU_KERNELS", "0")
        return cpu.open_on_cpu(model)


def unpacked(blocks: Blocks, bits: int) -> np.ndarray:
    """float64 [N, K, rounded up to whole blocks]."""
    codes = blocks.codes.astype(np.float64)
    zeros = np.full(blocks.scales.shape, 128.0)
    if bits == 4:
        codes = np.stack([blocks.codes & 15, blocks.codes >> 4], -1).reshape(*blocks.codes.shape[:2], BLOCK)
        zeros = np.stack([blocks.zeros & 15, blocks.zeros >> 4], -1).reshape(len(codes), -1)[:, : codes.shape[1]]
    values = (codes.astype(np.float64) - zeros[..., None]) * blocks.scales[..., None]
    return values.reshape(len(values), -1)


def rounded(x: np.ndarray, columns: int) -> np.ndarray:
    """x [n, K] with each block of a row rounded to multiples of a 127th of its largest magnitude."""
    blocks = np.pad(x, ((0, 0), (0, columns - x.shape[1]))).reshape(len(x), -1, BLOCK)
    most = np.abs(blocks).max(-1, keepdims=True)
    codes = np.rint(blocks * np.where(most > 0, np.float32(127) / np.maximum(most, np.float32(1e-30)), 0))
    return (codes.astype(np.float64) * (most / np.float32(127))).reshape(len(x), -1)


@needs_kernels
@pytest.mark.parametrize(("rows", "columns"), SIZES)
@pytest.mark.parametrize("bits", BITS)
def test_a_product_is_that_of_the_stored_numbers(tmp_path: Path, bits, rows, columns):
    weight, x = gaussian(rows, columns), gaussian(21, columns, seed=1)
    x[3] = 0
    y = answer(cpu.open_on_cpu(write(tmp_path, bits, weight)), x)
    stored = unpacked(quantize(weight, bits)[0], bits)
    np.testing.assert_allclose(y, rounded(x, stored.shape[1]) @ stored.T, rtol=1e-4, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize(("rows", "columns"), SIZES)
@pytest.mark.parametrize("bits", BITS)
def test_with_and_without_kernels_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits, rows, columns):
    model = write(tmp_path, bits, gaussian(rows, columns))
    ours, theirs = cpu.open_on_cpu(model), without_kernels(model, monkeypatch)
    for count in (1, 2, 3, 8, 9, 40):
        x = gaussian(count, columns, seed=count)
        np.testing.assert_allclose(answer(ours, x), answer(theirs, x), rtol=1e-4, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("bits", BITS)
def test_a_row_does_not_depend_on_those_beside_it(tmp_path: Path, bits):
    """Bit for bit, for every number of rows that are multiplied together, and over their borders."""
    session = cpu.open_on_cpu(write(tmp_path, bits, gaussian(48, 3 * BLOCK)))
    x = gaussian(19, 3 * BLOCK, seed=1) * np.logspace(-3, 3, 19, dtype=np.float32)[:, None]
    alone = np.concatenate([answer(session, row[None]) for row in x])
    for count in range(1, len(x) + 1):
        np.testing.assert_array_equal(answer(session, x[:count]), alone[:count])


@needs_kernels
def test_several_threads_share_a_session(tmp_path: Path):
    session = cpu.open_on_cpu(write(tmp_path, 4, gaussian(512, 8 * BLOCK)))
    asked = [gaussian(1 + seed % 9, 8 * BLOCK, seed=seed) for seed in range(64)]
    expected = [answer(session, x) for x in asked]
    with ThreadPoolExecutor(8) as pool:
        for found, wanted in zip(pool.map(lambda x: answer(session, x), asked), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)


@needs_kernels
@pytest.mark.parametrize(("kernels", "domain"), [(True, OWN_DOMAIN), (False, "com.microsoft")])
def test_who_multiplies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernels, domain):
    model = write(tmp_path, 4, gaussian(16, BLOCK))
    monkeypatch.setenv("PERSONAPLEX_CPU_KERNELS", "1" if kernels else "0")
    options = cpu.session_options(model)
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node
    assert [node.domain for node in nodes if node.op_type == "MatMulNBits"] == [domain]


@needs_kernels
def test_shapes_are_known_before_a_run(tmp_path: Path):
    session = cpu.open_on_cpu(write(tmp_path, 4, gaussian(40, BLOCK)))
    assert session.get_outputs()[0].shape == [ROWS, 1, 40]


def broken(model: Path, break_it) -> Path:
    """The graph, its weights in it, changed."""
    graph = onnx.load(model)
    break_it(graph.graph)
    onnx.save(graph, model)
    return model


def _other_blocks(graph: onnx.GraphProto) -> None:
    next(attribute for attribute in graph.node[0].attribute if attribute.name == "block_size").i = 64


def _other_rows(graph: onnx.GraphProto) -> None:
    next(attribute for attribute in graph.node[0].attribute if attribute.name == "N").i = 17


def _finer_scales(graph: onnx.GraphProto) -> None:
    scales = next(tensor for tensor in graph.initializer if tensor.name == "w.scales")
    finer = np.full(tuple(scales.dims), 1 / 3, np.float32)
    scales.CopyFrom(onnx.numpy_helper.from_array(finer, "w.scales"))


def _matrix_from_outside(graph: onnx.GraphProto) -> None:
    codes = next(tensor for tensor in graph.initializer if tensor.name == "w.codes")
    graph.initializer.remove(codes)
    graph.input.append(onnx.helper.make_tensor_value_info("w.codes", onnx.TensorProto.UINT8, tuple(codes.dims)))


@needs_kernels
@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (_other_blocks, "expected 4 or 8 bits and blocks of 128"),
        (_other_rows, "an operand's size is not K by N"),
        (_finer_scales, "expected scales that are bfloat16 numbers"),
        (_matrix_from_outside, "a matrix must be a constant"),
    ],
)
def test_what_the_kernels_do_not_take_is_said(tmp_path: Path, break_it, message):
    model = broken(write(tmp_path, 4, gaussian(16, BLOCK)), break_it)
    with pytest.raises(Exception, match=message):
        cpu.open_on_cpu(model)


@needs_kernels
def test_x_of_another_size_is_refused(tmp_path: Path):
    model = write(tmp_path, 4, gaussian(16, BLOCK))
    graph = onnx.load(model)
    graph.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "any"
    onnx.save(graph, model)
    with pytest.raises(Exception, match="the last dimension of x is not K"):
        answer(cpu.open_on_cpu(model), gaussian(2, BLOCK + 1))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="they are for x86-64")
def test_the_kernels_are_there_on_every_x86_machine_whatever_its_processor_can():
    assert cpu.KERNELS.is_file()


def test_why_there_are_no_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PERSONAPLEX_CPU_KERNELS", raising=False)
    monkeypatch.setattr(cpu, "KERNELS", tmp_path / "kernels.so")
    assert cpu.missing_for_kernels() == "kernels.so was not built"
    cpu.KERNELS.touch()
    monkeypatch.setattr(cpu, "_processor_features", lambda: cpu.KERNELS_NEED - {"avx512_vnni"})
    assert cpu.missing_for_kernels() == "the processor lacks avx512_vnni"
    monkeypatch.setattr(cpu, "_processor_features", lambda: {*cpu.KERNELS_NEED, "sse"})
    assert cpu.missing_for_kernels() is None
    monkeypatch.setenv("PERSONAPLEX_CPU_KERNELS", "0")
    assert cpu.missing_for_kernels() == "PERSONAPLEX_CPU_KERNELS is 0"


def resident(file: Path) -> int:
    """Bytes of `file` that this process has in memory."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if not first.endswith(":"):
            inside = line.endswith(str(file))
        elif inside and first == "Rss:":
            found += 1024 * int(line.split()[1])
    return found


def test_pages_of_weights_are_given_back_and_read_again(tmp_path: Path):
    build_repository(GOLDEN / "checkpoint", tmp_path / "models", slots=1, variant="int4")
    model = tmp_path / "models" / "triton" / "temporal" / "1" / "model.onnx"
    weights = cpu.weights_of(model)
    session = ort.InferenceSession(str(model), cpu.session_options(model), providers=["CPUExecutionProvider"])
    before = resident(weights)
    assert before > 0
    mapped = np.memmap(weights, np.uint8, "r")
    total = int(mapped.sum(dtype=np.uint64))
    cpu.forget_pages(weights)
    assert resident(weights) == 0
    assert int(mapped.sum(dtype=np.uint64)) == total
    del session
