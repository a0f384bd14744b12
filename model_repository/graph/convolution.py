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
        seen = self._blocks(x, kernel, length)
        if kernel.taps > 1:
            before = state = self._state(key, kernel)
            if first is not None:
                repeated = op.Expand(self._slice(x, 0, 1), graph.constant([1, stride, 1]))
                repeated = self._blocks(repeated, kernel, stride)
                before = op.Where(op.Unsqueeze(first, graph.constant([1, 2])), repeated, state)
            seen = self._windows(state, before, seen, kernel.taps, length // kernel.block)
        y = op.MatMul(seen, self._matrix(key, kernel))
        if f"{key}.bias" in self._weights.source:
            y = op.Add(y, self._bias(key, kernel))
        return self._unblocked(y, kernel, length)

    def elu_convolution(self, x: Value, key: str, length: int, *, stride: int = 1, added: Value | None = None) -> Value:
        """The same `convolution` of elu(x), plus `added`."""
        kernel = self._kernel(key, stride)
        return self._of_elu(x, key, kernel, length, added)

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

        return self._of_elu(x, key, _Kernel(2, 1, stride, (2 * inputs, stride * outputs), matrix), length, None)

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
        source = self._weights.source
        outputs, channels, size = source.shape(f"{key}.weight")
        if stride == 1 and size > 1 and 1 in (outputs, channels):
            return self._of_one_channel(key, _TO_ONE_CHANNEL if outputs == 1 else _FROM_ONE_CHANNEL)

        def matrix() -> Float32:
            return source.read(f"{key}.weight").transpose(2, 1, 0).reshape(size * channels, outputs)

        return _Kernel(size // stride, stride, 1, (size * channels, outputs), matrix)

    def _of_one_channel(self, key: str, block: int) -> _Kernel:
        """A kernel of stride 1, as a step from two blocks of inputs to the outputs of the later one."""
        source = self._weights.source
        outputs, channels, size = source.shape(f"{key}.weight")
        if size > block + 1:
            raise ValueError(f"{key}.weight: expected a kernel of at most {block + 1} steps, got {size}")

        def matrix() -> Float32:
            taps = source.read(f"{key}.weight").transpose(2, 1, 0)
            steps = np.zeros((2 * block, channels, block, outputs), np.float32)
            for output in range(block):
                last = block + output + 1
                steps[last - size : last, :, output] = taps
            return steps.reshape(2 * block * channels, block * outputs)

        return _Kernel(2, block, block, (2 * block * channels, block * outputs), matrix)

    def _of_elu(self, x: Value, key: str, kernel: _Kernel, length: int, added: Value | None) -> Value:
        graph, steps = self._graph, length // kernel.block
        x = self._blocks(x, kernel, length)
        matrix, bias = self._matrix(key, kernel), self._bias(key, kernel)
        added = graph.constant(np.float32(0)) if added is None else added
        if kernel.taps == 1:
            y = graph.call(_elu_projection(), x, matrix, bias, added)
        else:
            before = self._state(key, kernel)
            windows = graph.constant(np.arange(steps)[:, None] + np.arange(kernel.taps))
            tail = graph.constant(np.arange(steps, steps + kernel.taps - 1))
            operands = before, x, matrix, bias, added, windows, tail
            y, after = graph.call(_elu_convolution(), *operands, _outputs=2)
            self._active.update(before, after)
        return self._unblocked(y, kernel, length)

    def _state(self, key: str, kernel: _Kernel) -> Value:
        """The last blocks of the frame before."""
        return self._graph.state(key, (kernel.taps - 1, kernel.shape[0] // kernel.taps))

    def _matrix(self, key: str, kernel: _Kernel) -> Value:
        return self._graph.weight(f"{key}.matrix", kernel.shape, kernel.load)

    def _bias(self, key: str, kernel: _Kernel) -> Value:
        """The bias of all outputs of a step."""
        source, name = self._weights.source, f"{key}.bias"
        (size,) = source.shape(name)
        times = kernel.shape[1] // size
        return self._graph.weight(f"{name}.times.{times}", (times * size,), lambda: np.tile(source.read(name), times))

    def _blocks(self, x: Value, kernel: _Kernel, length: int) -> Value:
        """x [B, T, channels] -> [B, T / block, block * channels]."""
        if kernel.block == 1:
            return x
        width = kernel.shape[0] // kernel.taps
        return self._graph.op.Reshape(x, self._graph.constant([0, length // kernel.block, width]))

    def _unblocked(self, y: Value, kernel: _Kernel, length: int) -> Value:
        """What steps have made -> [B, T, channels]."""
        if kernel.made == 1:
            return y
        made = length // kernel.block * kernel.made
        return self._graph.op.Reshape(y, self._graph.constant([0, made, kernel.shape[1] // kernel.made]))

    def _windows(self, state: Value, before: Value, x: Value, taps: int, steps: int) -> Value:
        """What each step sees, oldest first: before [B, taps - 1, n], x [B, steps, n] -> [B, steps, taps * n]."""
        op = self._graph.op
        padded = op.Concat(before, x, axis=1)
        self._active.update(state, self._slice(padded, steps, steps + taps - 1))
        return op.Concat(*(self._slice(padded, tap, tap + steps) for tap in range(taps - 1)), x, axis=2)

    def _slice(self, x: Value, start: int, stop: int) -> Value:
        graph = self._graph
        return graph.op.Slice(x, graph.constant([start]), graph.constant([stop]), graph.constant([1]))


def _elu_convolution() -> ir.Function:
    """heard = before followed by elu(x). Of each step the product of its window of heard with the matrix, plus bias and
    added; and the end of heard.

    before [B, taps - 1, n], x [B, T, n], matrix [taps * n, out], bias [out], added [B, T, out] or one 0, windows
    [T, taps] and tail [taps - 1] int64, which are places in heard -> [B, T, out] and [B, taps - 1, n].
    """
    names = ("before", "x", "matrix", "bias", "added", "windows", "tail")
    before, x, matrix, bias, added, windows, tail = operands = [ir.Value(name=name) for name in names]
    body = ir.Graph(operands, [], nodes=[], opset_imports={"": OPSET})
    op = GraphBuilder(body).op
    heard = op.Concat(before, _elu(op, x), axis=1)
    seen = op.Reshape(op.Gather(heard, windows, axis=1), op.Constant(value_ints=[0, 0, -1]))
    y = op.Add(op.Add(op.MatMul(seen, matrix), bias), added)
    body.outputs.extend([y, op.Gather(heard, tail, axis=1)])
    return ir.Function(OWN_DOMAIN, "EluConvolution", graph=body, attributes=[])


def _elu_projection() -> ir.Function:
    """The same without what was before: x [B, T, in], matrix [in, out], bias, added -> [B, T, out]."""
    x, matrix, bias, added = operands = [ir.Value(name=name) for name in ("x", "matrix", "bias", "added")]
    body = ir.Graph(operands, [], nodes=[], opset_imports={"": OPSET})
    op = GraphBuilder(body).op
    body.outputs.append(op.Add(op.Add(op.MatMul(_elu(op, x), matrix), bias), added))
    return ir.Function(OWN_DOMAIN, "EluProjection", graph=body, attributes=[])


def _elu(op: Value, x: Value) -> Value:
    """x where it is positive, exp(x) - 1 where it is not: max(x, exp(min(x, 0)) - 1), for exp(x) - 1 is never below x.

    ONNX Runtime's own Elu computes one number at a time: 2 ns each on a core, and 0.7 ns this way.
    """
    below = op.Sub(op.Exp(op.Min(x, op.Constant(value_float=0.0))), op.Constant(value_float=1.0))
    return op.Max(x, below)
