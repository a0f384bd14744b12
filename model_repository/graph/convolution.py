"""Streaming convolutions of Mimi, as matmuls: each keeps per row just what the next frame needs.

A convolution is the product of what each step sees, a window of blocks of inputs, with the kernel as a matrix: all
steps of all rows make one product, whose matrix is packed at load and read once. (ONNX Runtime's Conv and ConvTranspose
take the batch row by row, and read and pack the kernel for each.) Most convolutions of Mimi are of elu(x): those are
operators of our own, for which the serving side may bring a kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnxscript import GraphBuilder

from model_repository.graph.builder import OPSET, Float32, Graph, Value
from model_repository.graph.weights import OWN_DOMAIN, Weights

_FROM_ONE_CHANNEL = 8
"""Outputs of a step where there is one channel of inputs, so that a product has a depth of 16."""

_TO_ONE_CHANNEL = 16
"""Outputs of a step where there is one channel of outputs: the lanes of a vector."""


class ActiveRows:
    """Keeps the state of rows that take no part in a run: [B] bool."""

    def __init__(self, graph: Graph, active: Value) -> None:
        self._graph = graph
        self._active = graph.op.Unsqueeze(active, graph.constant([1, 2]))

    def update(self, state: Value, new: Value) -> None:
        """state becomes new where the row is active. `new` must be computed from `state`: the two share memory."""
        self._graph.update(state, self._graph.op.Where(self._active, new, state))


@dataclass(frozen=True)
class _Kernel:
    """A kernel as the matrix of a step, which takes `taps` blocks of `block` inputs to `made` outputs."""

    taps: int
    block: int
    made: int
    shape: tuple[int, int]
    load: Callable[[], Float32]

    @property
    def width(self) -> int:
        """Elements of a block."""
        return self.shape[0] // self.taps


class Convolutions:
    """Convolutions of sound [B, T, channels]. Kernels are 1, or any where the stride is 1, or twice the stride."""

    def __init__(self, weights: Weights, active: ActiveRows) -> None:
        self._weights = weights
        self._graph = weights.graph
        self._active = active

    def convolution(self, x: Value, key: str, length: int, *, stride: int = 1, first: Value | None = None) -> Value:
        """Causal Conv1d of a stream: T = `length` steps of `in` channels -> T / stride of `out`; stride divides T.

        The kernel sees the last (kernel - stride) inputs of the previous frame, zeros before the first one. Where
        `first` [B] bool is given, a row's first frame sees its own first step repeated instead (replicate padding).
        """
        op, graph, kernel = self._graph.op, self._graph, self._kernel(key, stride)
        seen = self._reshaped(x, kernel.block, length // kernel.block, kernel.width)
        if kernel.taps > 1:
            before = state = graph.state(key, (kernel.taps - 1, kernel.width))
            if first is not None:
                repeated = op.Expand(self._slice(x, 0, 1), graph.constant([1, stride, 1]))
                repeated = self._reshaped(repeated, stride, 1, kernel.width)
                before = op.Where(op.Unsqueeze(first, graph.constant([1, 2])), repeated, state)
            seen = self._windows(state, before, seen, kernel.taps, length // kernel.block)
        y = op.MatMul(seen, graph.weight(f"{key}.matrix", kernel.shape, kernel.load))
        if f"{key}.bias" in self._weights.source:
            y = op.Add(y, self._bias(key, kernel))
        return self._reshaped(y, kernel.made, length // kernel.block * kernel.made, kernel.shape[1] // kernel.made)

    def elu_convolution(self, x: Value, key: str, length: int, *, stride: int = 1, added: Value | None = None) -> Value:
        """The same `convolution` of elu(x), plus `added`."""
        return self._elu_matmul(x, key, self._kernel(key, stride), length, added)

    def elu_transposed(self, x: Value, key: str, length: int, *, stride: int) -> Value:
        """Causal ConvTranspose1d of elu(x), its kernel twice its stride: `length` steps -> length * stride.

        A block of `stride` outputs is the later half of what the input before it makes and the earlier half of what its
        own makes: one product with the two halves of the kernel above one another.
        """
        source = self._weights.source
        inputs, outputs, _ = source.shape(f"{key}.weight")

        def matrix() -> Float32:
            halves = source.read(f"{key}.weight").reshape(inputs, outputs, 2, stride)
            return halves.transpose(2, 0, 3, 1)[::-1].reshape(2 * inputs, stride * outputs)

        return self._elu_matmul(x, key, _Kernel(2, 1, stride, (2 * inputs, stride * outputs), matrix), length, None)

    def upsample(self, x: Value, key: str, *, stride: int) -> Value:
        """Causal ConvTranspose1d of each channel by itself, its kernel twice its stride: one step -> `stride`."""
        graph, op, source = self._graph, self._graph.op, self._weights.source
        channels = source.shape(f"{key}.weight")[0]

        def taps(half: int) -> Float32:
            return source.read(f"{key}.weight")[:, 0].T[half * stride : (half + 1) * stride]

        before = graph.state(key, (1, channels))
        late = graph.weight(f"{key}.late", (stride, channels), lambda: taps(1))
        early = graph.weight(f"{key}.early", (stride, channels), lambda: taps(0))
        y = op.Add(op.Mul(before, late), op.Mul(x, early))
        self._active.update(before, x)
        return y

    def _kernel(self, key: str, stride: int) -> _Kernel:
        """With one channel of inputs or outputs a step makes several outputs, from two blocks of as many inputs."""
        source = self._weights.source
        outputs, channels, size = source.shape(f"{key}.weight")
        taps, block, made = size // stride, stride, 1
        if stride == 1 and size > 1 and 1 in (outputs, channels):
            made = max(_TO_ONE_CHANNEL if outputs == 1 else _FROM_ONE_CHANNEL, 1 << (size - 2).bit_length())
            taps, block = 2, made

        def matrix() -> Float32:
            kernel = source.read(f"{key}.weight").transpose(2, 1, 0)
            steps = np.zeros((taps * block, channels, made, outputs), np.float32)
            for output in range(made):
                stop = taps * block - made + output + 1
                steps[stop - size : stop, :, output] = kernel
            return steps.reshape(taps * block * channels, made * outputs)

        return _Kernel(taps, block, made, (taps * block * channels, made * outputs), matrix)

    def _elu_matmul(self, x: Value, key: str, kernel: _Kernel, length: int, added: Value | None) -> Value:
        graph, steps = self._graph, length // kernel.block
        x = self._reshaped(x, kernel.block, steps, kernel.width)
        matrix, bias = graph.weight(f"{key}.matrix", kernel.shape, kernel.load), self._bias(key, kernel)
        added = graph.constant(np.float32(0)) if added is None else added
        if kernel.taps == 1:
            y = graph.call(_of_elu(history=False), x, matrix, bias, added)
        else:
            before = graph.state(key, (kernel.taps - 1, kernel.width))
            windows = graph.constant(np.arange(steps)[:, None] + np.arange(kernel.taps))
            tail = graph.constant(np.arange(steps, steps + kernel.taps - 1))
            operands = before, x, matrix, bias, added, windows, tail
            y, after = graph.call(_of_elu(history=True), *operands, _outputs=2)
            self._active.update(before, after)
        return self._reshaped(y, kernel.made, length // kernel.block * kernel.made, kernel.shape[1] // kernel.made)

    def _bias(self, key: str, kernel: _Kernel) -> Value:
        """The bias of all outputs of a step."""
        source, name = self._weights.source, f"{key}.bias"
        (size,) = source.shape(name)
        times = kernel.shape[1] // size
        return self._graph.weight(f"{name}.times.{times}", (times * size,), lambda: np.tile(source.read(name), times))

    def _reshaped(self, x: Value, blocks: int, steps: int, width: int) -> Value:
        """x [B, T, n] -> [B, steps, width], where it is not that already: it is if `blocks` is 1."""
        return x if blocks == 1 else self._graph.op.Reshape(x, self._graph.constant([0, steps, width]))

    def _windows(self, state: Value, before: Value, x: Value, taps: int, steps: int) -> Value:
        """What each step sees, oldest first: before [B, taps - 1, n], x [B, steps, n] -> [B, steps, taps * n]."""
        op = self._graph.op
        padded = op.Concat(before, x, axis=1)
        self._active.update(state, self._slice(padded, steps, steps + taps - 1))
        return op.Concat(*(self._slice(padded, tap, tap + steps) for tap in range(taps - 1)), x, axis=2)

    def _slice(self, x: Value, start: int, stop: int) -> Value:
        graph = self._graph
        return graph.op.Slice(x, graph.constant([start]), graph.constant([stop]), graph.constant([1]))


def _of_elu(history: bool) -> ir.Function:
    """EluConvolution: padded = before followed by elu(x). Of each step the product of its window of padded with the
    matrix, plus bias and added; and the end of padded. EluProjection: the same without what was before.

    before [B, taps - 1, n], x [B, T, n], matrix [taps * n, out], bias [out], added [B, T, out] or one 0, windows
    [T, taps] and tail [taps - 1] int64, which are places in padded -> [B, T, out] and [B, taps - 1, n].
    """
    before, x, matrix, bias, added, windows, tail = (
        ir.Value(name=name) for name in ("before", "x", "matrix", "bias", "added", "windows", "tail")
    )
    operands = [before, x, matrix, bias, added, windows, tail] if history else [x, matrix, bias, added]
    body = ir.Graph(operands, [], nodes=[], opset_imports={"": OPSET})
    op = GraphBuilder(body).op
    # x where it is positive, exp(x) - 1 where it is not, which is never below x. ONNX Runtime's own Elu computes one
    # number at a time: 2 ns each on a core, and 0.7 ns this way.
    below = op.Sub(op.Exp(op.Min(x, op.Constant(value_float=0.0))), op.Constant(value_float=1.0))
    seen = op.Max(x, below)
    if history:
        padded = op.Concat(before, seen, axis=1)
        seen = op.Reshape(op.Gather(padded, windows, axis=1), op.Constant(value_ints=[0, 0, -1]))
    body.outputs.append(op.Add(op.Add(op.MatMul(seen, matrix), bias), added))
    if history:
        body.outputs.append(op.Gather(padded, tail, axis=1))
    return ir.Function(OWN_DOMAIN, "EluConvolution" if history else "EluProjection", graph=body, attributes=[])
