"""Our operator for CUDA, its kernels run on a CPU, and the ONNX function that it stands for, beside NumPy in float64.
Compiled for GPUs: what it takes of them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from loadtest.bench.models.sizes import shapes_only
from model_repository.checkpoint.geometry import TransformerGeometry
from model_repository.graph.attention import CacheScales, Columns, Int8KvAttention, Ring
from model_repository.graph.builder import COLUMNS, ROWS, Graph
from model_repository.graph.weights import Weights
from model_repository.serving.device import OPERATORS
from model_repository.variants import CachePrecision, Precision
from tests.model_repository.serving.conftest import Models

Array = NDArray[np.generic]

KEY_SCALE, VALUE_SCALE = 0.031, 0.017

DTYPES = {Precision.FP32: np.float32, Precision.FP16: np.float16, Precision.BF16: ml_dtypes.bfloat16}

ROUNDING = {Precision.FP32: 0, Precision.FP16: 2**-11, Precision.BF16: 2**-8}
"""Relative error of a number."""


@dataclass(frozen=True)
class Case:
    """Rows at `position`, which read `filled` slots, with so many columns each."""

    heads: int
    head_dim: int
    window: int
    position: tuple[int, ...]
    filled: tuple[int, ...]
    columns: int = 1

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim

    def inputs(self, seed: int = 0, dtype: type = np.float32) -> dict[str, Array]:
        """Normal numbers, of which a few are too large for 8 bits, and rings of any codes."""
        rng = np.random.default_rng(seed)
        rows, half = len(self.position), self.head_dim // 2
        positions = np.array(self.position)[:, None, None] + np.arange(self.columns)[:, None]
        angles = (positions * 10000.0 ** (-np.arange(half) / half)).astype(np.float32)
        return {
            "projected": 2 * rng.standard_normal((rows, self.columns, 3 * self.dim)).astype(dtype),
            "cosines": np.cos(angles),
            "sines": np.sin(angles),
            "position": np.array(self.position),
            "filled": np.array(self.filled),
            "cache.layer.key": rng.integers(-128, 128, (rows, self.window, self.dim)).astype(np.int8),
            "cache.layer.value": rng.integers(-128, 128, (rows, self.window, self.dim)).astype(np.int8),
        }


CASES = {
    "one full window of the published size": Case(2, 128, 2999, (7001,), (2999,)),
    "rows at any place, one idle": Case(3, 128, 300, (0, 7, 299, 300, 1234, 17), (1, 8, 300, 300, 300, 0)),
    "rows that read one slot of more": Case(2, 64, 65, (40, 64, 1000), (1, 1, 1)),
    "fewer slots than groups of threads": Case(4, 16, 56, (3, 55, 80), (4, 56, 56)),
    "three slots": Case(1, 32, 3, (2, 8), (3, 3)),
    "a chunk from the beginning": Case(2, 16, 56, (0,), (5,), 5),
    "a chunk up to the end": Case(2, 128, 200, (136,), (200,), 64),
    "a padded chunk": Case(2, 32, 90, (20,), (84,), 64),
}


@pytest.fixture(scope="session")
def write(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case, Precision], Path]:
    """Return a function that writes a graph of one attention."""
    folder = tmp_path_factory.mktemp("attention")

    def graph_of(case: Case, activations: Precision = Precision.FP32) -> Path:
        geometry = TransformerGeometry(case.dim, 1, case.heads, 1, case.window + 1, 10000.0)
        graph = Graph("attention")
        element = ir.DataType.from_numpy(np.dtype(DTYPES[activations]))
        projected = graph.input("projected", element, [ROWS, COLUMNS, 3 * case.dim])
        cosines, sines = (
            graph.input(name, ir.DataType.FLOAT, [ROWS, COLUMNS, case.head_dim // 2]) for name in ("cosines", "sines")
        )
        position, filled = (graph.input(name, ir.DataType.INT64, [ROWS]) for name in ("position", "filled"))
        weights = Weights(graph, shapes_only({}), activations=activations)
        attend = Int8KvAttention(weights, Columns(position, filled, (cosines, sines)), geometry)
        scales = CacheScales(CachePrecision.INT8, KEY_SCALE, VALUE_SCALE)
        ring = Ring(graph, "layer", attend.cache_shape, scales, activations)
        graph.output("attended", graph.op.Cast(attend(projected, ring), to=ir.DataType.FLOAT))
        model = folder / f"{abs(hash((case, activations)))}.onnx"
        graph.save(model)
        return model

    return graph_of


def run(model: Path, operators: Path | None, inputs: dict[str, Array]) -> tuple[Array, Array, Array]:
    """Attended, keys and values."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if operators is not None:
        options.register_custom_ops_library(str(operators))
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    given = {name: _ort_value(array) for name, array in inputs.items()}
    outputs = ["attended", "cache.layer.key.next", "cache.layer.value.next"]
    attended, keys, values = (value.numpy() for value in session.run_with_ort_values(outputs, given))
    return attended, keys, values


def _ort_value(array: Array) -> ort.OrtValue:
    element = ir.DataType.from_numpy(array.dtype)
    bits = array.view(np.uint16) if element is ir.DataType.BFLOAT16 else array
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, element.value)


def computed(case: Case, inputs: dict[str, Array], rounded: bool) -> tuple[Array, Array, Array]:
    """The same in float64; keys and values are rounded as float32. `rounded`: a head's query is too, to 15 bits."""
    rows, columns = len(case.position), case.columns
    parts = inputs["projected"].astype(np.float32).reshape(rows, columns, 3, case.heads, case.head_dim)
    cosine, sine = (inputs[name][:, :, None] for name in ("cosines", "sines"))
    query, key = (np.empty_like(parts[:, :, 0]) for _ in range(2))
    for turned, x in ((query, parts[:, :, 0]), (key, parts[:, :, 1])):
        first, second = x[..., ::2], x[..., 1::2]
        turned[..., ::2], turned[..., 1::2] = first * cosine - second * sine, first * sine + second * cosine
    if rounded:
        largest, steps = np.abs(query).max(-1, keepdims=True), np.float32(127 * 128)
        query = np.rint(query * (steps / largest)) * np.float64(largest / steps)
    shape = (rows, case.window, case.heads, case.head_dim)
    keys, values = (inputs[f"cache.layer.{name}"].reshape(shape).copy() for name in ("key", "value"))
    slots = (inputs["position"][:, None] + np.arange(columns)) % case.window
    for ring, new, scale in ((keys, key, KEY_SCALE), (values, parts[:, :, 2], VALUE_SCALE)):
        codes = np.rint(new / np.float32(scale)).clip(-128, 127).astype(np.int8)
        ring[np.arange(rows)[:, None], slots] = codes
    attended = np.zeros(query.shape)
    for row, column in np.ndindex(rows, columns):
        visible = inputs["filled"][row] - (columns - 1 - column)
        if visible > 0:
            scores = np.einsum("hd,whd->hw", query[row, column], np.float64(1) * keys[row, :visible] * KEY_SCALE)
            weights = np.exp((scores - scores.max(-1, keepdims=True)) / np.sqrt(case.head_dim))
            weights /= weights.sum(-1, keepdims=True)
            attended[row, column] = np.einsum("hw,whd->hd", weights, values[row, :visible] * VALUE_SCALE)
    flat = (rows, case.window, case.dim)
    return attended.reshape(rows, columns, case.dim), keys.reshape(flat), values.reshape(flat)


@pytest.mark.parametrize("activations", DTYPES)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("with_library", [True, False], ids=["operator", "function"])
def test_it_attends_to_what_is_stored(write, host_operators, case: Case, activations: Precision, with_library: bool):
    inputs = case.inputs(dtype=DTYPES[activations])
    found = run(write(case, activations), host_operators if with_library else None, inputs)
    expected = computed(case, inputs, with_library)
    read = slice(None) if with_library else np.array(case.filled) > 0
    np.testing.assert_allclose(found[0][read], expected[0][read], rtol=ROUNDING[activations], atol=2e-5)
    for mine, theirs in zip(found[1:], expected[1:], strict=True):
        differences = np.abs(mine.astype(int) - theirs)
        # A number halfway between two codes may be rounded to either.
        assert differences.max() <= 1
        assert (differences > 0).mean() < 1e-4
    assert not np.array_equal(found[1], inputs["cache.layer.key"])


@pytest.mark.parametrize("with_library", [True, False])
def test_who_attends(write, host_operators, tmp_path: Path, with_library: bool):
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    if with_library:
        options.register_custom_ops_library(str(host_operators))
    ort.InferenceSession(str(write(CASES["three slots"])), options, providers=["CPUExecutionProvider"])
    found = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert ("Int8KvAttention" in found, "TensorScatter" in found) == (with_library, not with_library)


def test_a_session_without_the_library_says_what_that_costs(golden_variant, caplog: pytest.LogCaptureFixture):
    models = golden_variant("fp32", "int8", "cuda")
    assert Models(models, slots=1).temporal
    assert "int8_kv_attention.so was not built: every step makes all keys and values float32" in caplog.text


def test_slots_that_are_not_filled_are_not_read(write, host_operators):
    case = Case(2, 128, 300, (0, 100, 17), (1, 101, 0))
    model, inputs = write(case), case.inputs()
    attended = run(model, host_operators, inputs)[0]
    assert (attended[2] == 0).all()
    assert np.abs(attended[:2]).min() > 0
    for name in ("key", "value"):
        for row, filled in enumerate(case.filled):
            inputs[f"cache.layer.{name}"][row, filled:] ^= 127
    np.testing.assert_array_equal(run(model, host_operators, inputs)[0], attended)


def test_a_row_does_not_depend_on_those_beside_it(write, host_operators):
    """Bit for bit, also beside rows that are no numbers."""
    case = CASES["rows at any place, one idle"]
    model, inputs = write(case), case.inputs()
    together = run(model, host_operators, inputs)
    inputs["projected"][1] = np.nan
    inputs["projected"][4, :, ::3] = np.inf
    broken = run(model, host_operators, inputs)
    for row in (0, 2, 3, 5):
        alone = run(model, host_operators, {name: array[row : row + 1] for name, array in inputs.items()})
        for one, many, beside in zip(alone, together, broken, strict=True):
            np.testing.assert_array_equal(one[0], many[row])
            np.testing.assert_array_equal(one[0], beside[row])


def test_columns_of_a_chunk_are_steps(write, host_operators):
    case = CASES["a chunk from the beginning"]
    model, inputs = write(case), case.inputs()
    chunk = run(model, host_operators, inputs)
    given = dict(inputs)
    for column in range(case.columns):
        for name in ("projected", "cosines", "sines"):
            given[name] = inputs[name][:, column : column + 1]
        given |= {"position": np.array([column]), "filled": np.array([column + 1])}
        step, given["cache.layer.key"], given["cache.layer.value"] = run(model, host_operators, given)
        np.testing.assert_array_equal(step[:, 0], chunk[0][:, column])
    np.testing.assert_array_equal(given["cache.layer.key"], chunk[1])
    np.testing.assert_array_equal(given["cache.layer.value"], chunk[2])


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        (Case(2, 48, 9, (0,), (1,)), {}, "expected heads of 16, 32, 64 or 128 elements"),
        (Case(2, 16, 9, (0,), (1,)), {"filled": np.array([1, 1])}, "the sizes of operands differ"),
    ],
)
def test_what_it_does_not_take_is_said(write, host_operators, case: Case, change: dict[str, Array], message: str):
    with pytest.raises(Exception, match=message):
        run(write(case), host_operators, case.inputs() | change)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc, the compiler for CUDA, is not there")
@pytest.mark.long
def test_it_fits_gpus(tmp_path: Path):
    """No spills, and four blocks of `attend` on a multiprocessor of an H200: 65,536 registers, 228 KB of memory."""
    script = OPERATORS.with_name("compile_cuda.sh")
    environment = os.environ | {"OUT": str(tmp_path / "operators.so")}
    command = [script, "-Xptxas", "-v"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kernels = [kernel.replace("\n", " ") for kernel in done.stderr.split("Compiling entry function ")[1:]]
    targets = Counter(kernel.split("'")[3] for kernel in kernels)
    assert targets == {"sm_80": 5, "sm_90a": 5, "sm_120": 5}, "attend for four sizes of heads, and write"
    for kernel in kernels:
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in kernel
        assert int(re.findall(r"Used (\d+) registers", kernel)[0]) <= 64, kernel
        assert int(re.findall(r"(\d+) bytes smem|$", kernel)[0] or 0) <= 48 << 10, kernel
