"""Convolutions of elu(x): the CPU kernels answer what the graph's own form does, and what NumPy does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from model_repository.graph.builder import ROWS, Graph, Value
from model_repository.graph.convolution import ActiveRows, Convolutions
from model_repository.graph.weights import Weights
from model_repository.serving import cpu
from tests.model_repository.arrays import tensors_of

pytestmark = pytest.mark.skipif(cpu.missing_for_kernels() is not None, reason=str(cpu.missing_for_kernels()))

LENGTHS = (2, 16, 96, 480)
"""Steps of a frame: windows of a few are copied; of many, rows of the input overlap; the last is several chunks."""

SHAPES = {
    "kernel of 3": (3, 1, 12, 20),
    "one step": (1, 1, 24, 40),
    "strided": (4, 2, 8, 33),
    "to one channel": (7, 1, 8, 1),
    "narrow": (3, 1, 16, 8),
}
"""Kernel, stride, channels in and out: less than a vector, one, and more than two."""


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


Shape = tuple[int, int, int, int]


def write(folder: Path, shape: Shape, length: int, *, added: bool = False, transposed: int = 0) -> Path:
    """A graph of one convolution, x [rows, length, in] -> y, with a residual `added`, or transposed by a stride."""
    kernel, stride, channels, outputs = shape
    graph = Graph("convolution")
    x = graph.input("x", ir.DataType.FLOAT, [ROWS, length, channels])
    active = ActiveRows(graph, graph.input("active", ir.DataType.BOOL, [ROWS]))
    weight = gaussian(channels, outputs, 2 * transposed) if transposed else gaussian(outputs, channels, kernel)
    sound = Convolutions(Weights(graph, tensors_of({"c.weight": weight, "c.bias": gaussian(outputs, seed=3)})), active)
    y: Value
    if transposed:
        y = sound.elu_transposed(x, "c", length, stride=transposed)
    else:
        residual = graph.input("added", ir.DataType.FLOAT, [ROWS, length // stride, outputs]) if added else None
        y = sound.elu_convolution(x, "c", length, stride=stride, added=residual)
    graph.output("y", y)
    graph.save(folder / "model.onnx")
    return folder / "model.onnx"


class Stream:
    """Frames through a session, with the states of its rows."""

    def __init__(self, session: ort.InferenceSession, rows: int) -> None:
        self._session = session
        states = (node for node in session.get_inputs() if node.name.startswith("state."))
        self.states = {node.name: np.zeros((rows, *node.shape[1:]), np.float32) for node in states}

    def __call__(self, x: np.ndarray, added: np.ndarray | None = None, active: np.ndarray | None = None) -> np.ndarray:
        given = {"x": x, "active": np.ones(len(x), bool) if active is None else active, **self.states}
        if added is not None:
            given["added"] = added
        y, *after = self._session.run(["y", *(f"{name}.next" for name in self.states)], given)
        self.states = dict(zip(self.states, after, strict=True))
        return y


def without_kernels(model: Path, monkeypatch: pytest.MonkeyPatch) -> ort.InferenceSession:
    with monkeypatch.context() as patched:
        patched.setenv("PERSONAPLEX_CPU_KERNELS", "0")
        return cpu.open_on_cpu(model)


def convolved(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int) -> np.ndarray:
    """Causal convolution of elu(x) [B, T, in] in float64, of a stream that begins with x."""
    _, channels, kernel = weight.shape
    activated = np.where(x > 0, x, np.expm1(np.minimum(x, 0, dtype=np.float64)))
    padded = np.concatenate([np.zeros((len(x), kernel - stride, channels)), activated], axis=1)
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=1)[:, ::stride]
    return np.einsum("btck,ock->bto", windows, weight.astype(np.float64)) + bias


def feeds(x: np.ndarray) -> dict[str, np.ndarray]:
    return {"x": x.astype(np.float32), "active": np.ones(len(x), bool)}


def options(shape: Shape, length: int) -> bool:
    """Whether steps divide the frame, and what has one channel has whole blocks."""
    return length % shape[1] == 0 and (shape[3] > 1 or length % 16 == 0)


CASES = [
    pytest.param(shape, length, id=f"{name}, {length} steps")
    for name, shape in SHAPES.items()
    for length in LENGTHS
    if options(shape, length)
]


@pytest.mark.parametrize(("shape", "length"), CASES)
def test_frames_are_a_convolution_of_the_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape, length):
    kernel, stride, channels, outputs = shape
    model = write(tmp_path, shape, length)
    x = 3 * gaussian(3, 3 * length, channels, seed=1)
    expected = convolved(x, gaussian(outputs, channels, kernel), gaussian(outputs, seed=3), stride)
    for session in (cpu.open_on_cpu(model), without_kernels(model, monkeypatch)):
        stream = Stream(session, 3)
        found = np.concatenate([stream(frame) for frame in np.split(x, 3, axis=1)], axis=1)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_residual_is_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int):
    model = write(tmp_path, (1, 1, 24, 40), length, added=True)
    x, added = gaussian(2, length, 24, seed=1), gaussian(2, length, 40, seed=2)
    expected = convolved(x, gaussian(40, 24, 1), gaussian(40, seed=3), 1) + added
    for session in (cpu.open_on_cpu(model), without_kernels(model, monkeypatch)):
        np.testing.assert_allclose(Stream(session, 2)(x, added), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_transposed_convolution_overlaps_its_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int):
    stride, weight, bias = 5, gaussian(12, 9, 10), gaussian(9, seed=3)
    model = write(tmp_path, (0, 0, 12, 9), length, transposed=stride)
    x = 3 * gaussian(2, 2 * length, 12, seed=1)
    activated = np.where(x > 0, x, np.expm1(np.minimum(x, 0, dtype=np.float64)))
    expected = np.zeros((2, 2 * length * stride + stride, 9))
    for step in range(2 * length):
        made = np.einsum("bc,cok->bko", activated[:, step], weight)
        expected[:, step * stride : (step + 2) * stride] += made
    expected = expected[:, : 2 * length * stride] + bias
    for session in (cpu.open_on_cpu(model), without_kernels(model, monkeypatch)):
        stream = Stream(session, 2)
        found = np.concatenate([stream(frame) for frame in np.split(x, 2, axis=1)], axis=1)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("shape", "length"), CASES)
def test_a_row_does_not_depend_on_those_beside_it(tmp_path: Path, shape, length):
    """Bit for bit, whatever rows share its chunk; and a row that rests keeps its state."""
    session = cpu.open_on_cpu(write(tmp_path, shape, length))
    x = gaussian(30, length, shape[2], seed=1) * np.logspace(-3, 3, 30, dtype=np.float32)[:, None, None]
    together = Stream(session, 30)
    first = together(x, active=np.arange(30) % 3 > 0)
    states = {name: state.copy() for name, state in together.states.items()}
    for row in range(30):
        alone = Stream(session, 1)
        np.testing.assert_array_equal(alone(x[row : row + 1])[0], first[row])
        for name, state in states.items():
            np.testing.assert_array_equal(state[row], alone.states[name][0] if row % 3 else 0)


def test_threads_share_a_large_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = write(tmp_path, (3, 1, 256, 320), 16)
    x = gaussian(5, 16, 256, seed=1)
    one = Stream(cpu.open_on_cpu(model), 5)(x)
    monkeypatch.setenv("PERSONAPLEX_INTRA_OP_THREADS", "3")
    np.testing.assert_array_equal(Stream(cpu.open_on_cpu(model), 5)(x), one)
    np.testing.assert_allclose(one, convolved(x, gaussian(320, 256, 3), gaussian(320, seed=3), 1), rtol=1e-3, atol=2e-4)


def test_elu_is_exact_to_a_few_roundings(tmp_path: Path):
    graph = Graph("elu")
    x = graph.input("x", ir.DataType.FLOAT, [ROWS, 2, 1])
    active = ActiveRows(graph, graph.input("active", ir.DataType.BOOL, [ROWS]))
    tensors = {"c.weight": np.ones((2, 1, 1), np.float32), "c.bias": np.zeros(2, np.float32)}
    graph.output("y", Convolutions(Weights(graph, tensors_of(tensors)), active).elu_convolution(x, "c", 2))
    graph.save(tmp_path / "model.onnx")
    values = np.concatenate([-np.logspace(-8, 38, 20_000), np.logspace(-8, 38, 20_000), [0, -0.0]]).astype(np.float32)
    (y,) = cpu.open_on_cpu(tmp_path / "model.onnx").run(["y"], feeds(values.reshape(-1, 2, 1)))
    exact = np.where(values > 0, values, np.expm1(np.minimum(values, 0, dtype=np.float64)))
    # exp is rounded near 1 before 1 is taken away, in the graph's own form as well.
    np.testing.assert_allclose(y[..., 0].reshape(-1), exact, rtol=1e-6, atol=1.2e-7)
    (y,) = cpu.open_on_cpu(tmp_path / "model.onnx").run(["y"], feeds(np.full((1, 2, 1), np.nan)))
    assert np.isnan(y).all()


def test_who_convolves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = write(tmp_path, SHAPES["kernel of 3"], 16)
    for kernels in (True, False):
        monkeypatch.setenv("PERSONAPLEX_CPU_KERNELS", "1" if kernels else "0")
        chosen = cpu.session_options(model)
        chosen.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        session = ort.InferenceSession(str(model), chosen, providers=["CPUExecutionProvider"])
        assert session.get_outputs()[-1].shape == [ROWS, 16, 20]
        nodes = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node
        assert ("EluConvolution" in {node.op_type for node in nodes}) is kernels


def test_what_does_not_fit_is_said(tmp_path: Path):
    model = write(tmp_path, SHAPES["kernel of 3"], 16)
    changed = onnx.load(model)
    changed.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "any"
    onnx.save(changed, model)
    stream = Stream(cpu.open_on_cpu(model), 1)
    with pytest.raises(Exception, match="before, x and the matrix do not fit each other"):
        stream(gaussian(1, 16, 13))
