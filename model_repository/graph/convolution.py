"""Streaming convolutions of Mimi, as matmuls: each keeps per row just what the next frame needs.

A convolution is the product of what each output sees with the kernel as a matrix: all steps of all rows make one
product, whose matrix is packed at load and read once. (ONNX Runtime's Conv and ConvTranspose take the batch row by row,
and read and pack the kernel for each.)
"""

from __future__ import annotations

import numpy as np

from model_repository.graph.builder import Float32, Graph, Value
from model_repository.graph.weights import Weights


class ActiveRows:
    """Keeps the state of rows that take no part in a run: [B] bool."""

    def __init__(self, graph: Graph, active: Value) -> None:
        self._graph = graph
        self._active = graph.op.Unsqueeze(active, graph.constant([1, 2]))

    def update(self, state: Value, new: Value) -> None:
        """state becomes new where the row is active. `new` must be computed from `state`: the two share memory."""
        self._graph.update(state, self._graph.op.Where(self._active, new, state))


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
        graph, op, weights = self._graph, self._graph.op, self._weights
        outputs, channels, kernel = weights.source.shape(f"{key}.weight")
        if outputs == 1 and kernel > stride == 1:
            return self._to_one_channel(x, key, length)
        steps, block, taps = length // stride, stride * channels, kernel // stride
        seen = x if stride == 1 else op.Reshape(x, graph.constant([0, steps, block]))
        if taps > 1:
            state = graph.state(key, (taps - 1, block))
            before = state
            if first is not None:
                repeated = op.Expand(self._slice(x, 0, 1), graph.constant([1, stride, 1]))
                repeated = op.Reshape(repeated, graph.constant([0, 1, block]))
                before = op.Where(op.Unsqueeze(first, graph.constant([1, 2])), repeated, state)
            seen = self._windows(state, before, seen, taps, steps)

        def matrix() -> Float32:
            return weights.source.read(f"{key}.weight").transpose(2, 1, 0).reshape(kernel * channels, outputs)

        y = op.MatMul(seen, graph.weight(f"{key}.matrix", (kernel * channels, outputs), matrix))
        return self._plus_bias(y, key)

    def transposed(self, x: Value, key: str, steps: int, *, stride: int, groups: int = 1) -> Value:
        """Causal ConvTranspose1d of a stream, its kernel twice its stride: `steps` -> steps * stride.

        A block of `stride` outputs is the later half of what the input before it makes and the earlier half of what its
        own makes: one product with the two halves of the kernel above one another. `groups`: 1 or the channels.
        """
        graph, op, weights = self._graph, self._graph.op, self._weights
        inputs, channels, _ = weights.source.shape(f"{key}.weight")
        outputs = channels * groups
        before = graph.state(key, (1, inputs))
        if groups == 1:

            def matrix() -> Float32:
                halves = weights.source.read(f"{key}.weight").reshape(inputs, channels, 2, stride)
                return halves.transpose(2, 0, 3, 1)[::-1].reshape(2 * inputs, stride * channels)

            seen = self._windows(before, before, x, 2, steps)
            y = op.MatMul(seen, graph.weight(f"{key}.matrix", (2 * inputs, stride * outputs), matrix))
            y = self._plus_bias(y, key, stride)
            return op.Reshape(y, graph.constant([0, steps * stride, outputs]))

        def taps(half: int) -> Float32:
            return weights.source.read(f"{key}.weight")[:, 0].T[half * stride : (half + 1) * stride]

        padded = op.Concat(before, x, axis=1)
        self._active.update(before, self._slice(padded, steps, steps + 1))
        late = graph.weight(f"{key}.late", (stride, outputs), lambda: taps(1))
        early = graph.weight(f"{key}.early", (stride, outputs), lambda: taps(0))
        y = op.Add(
            op.Mul(op.Unsqueeze(self._slice(padded, 0, steps), graph.constant([2])), late),
            op.Mul(op.Unsqueeze(x, graph.constant([2])), early),
        )
        return op.Reshape(y, graph.constant([0, steps * stride, outputs]))

    def _windows(self, state: Value, before: Value, x: Value, taps: int, steps: int) -> Value:
        """What each output sees, oldest first: before [B, taps - 1, n], x [B, steps, n] -> [B, steps, taps * n]."""
        op = self._graph.op
        padded = op.Concat(before, x, axis=1)
        self._active.update(state, self._slice(padded, steps, steps + taps - 1))
        return op.Concat(*(self._slice(padded, tap, tap + steps) for tap in range(taps - 1)), x, axis=2)

    def _to_one_channel(self, x: Value, key: str, length: int) -> Value:
        """A convolution of stride 1 to a single channel: each input's products with all taps, then their sums."""
        graph, op, weights = self._graph, self._graph.op, self._weights
        _, channels, kernel = weights.source.shape(f"{key}.weight")
        taps = graph.weight(f"{key}.taps", (channels, kernel), lambda: weights.source.read(f"{key}.weight")[0])
        state = graph.state(key, (kernel - 1, kernel))
        products = op.Concat(state, op.MatMul(x, taps), axis=1)
        self._active.update(state, self._slice(products, length, length + kernel - 1))
        axes = graph.constant([1, 2])
        parts = (
            op.Slice(products, graph.constant([tap, tap]), graph.constant([tap + length, tap + 1]), axes)
            for tap in range(kernel)
        )
        return self._plus_bias(op.Sum(*parts), key)

    def _plus_bias(self, y: Value, key: str, times: int = 1) -> Value:
        """y [..., times * out] plus the convolution's bias [out], where it has one."""
        weights, name = self._weights, f"{key}.bias"
        if name not in weights.source:
            return y
        (size,) = weights.source.shape(name)
        repeated = self._graph.weight(
            f"{name}.times.{times}", (times * size,), lambda: np.tile(weights.source.read(name), times)
        )
        return self._graph.op.Add(y, repeated)

    def _slice(self, x: Value, start: int, stop: int) -> Value:
        graph = self._graph
        return graph.op.Slice(x, graph.constant([start]), graph.constant([stop]), graph.constant([1]))
