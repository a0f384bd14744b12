"""Streaming convolutions of Mimi: each keeps per row just the samples or partial sums that the next frame needs.

There are two ways to compute them, with the same results but for rounding: `ChannelsFirst` here, by ONNX Runtime's own
operators, and `ChannelsLast` (in its own file), by matrix products, for codecs with many channels.
"""

from __future__ import annotations

from typing import Protocol

from model_repository.graph.builder import Graph, Value
from model_repository.graph.layers import Weights


class ActiveRows:
    """Keeps the state of rows that take no part in a run: [B] bool."""

    def __init__(self, graph: Graph, active: Value) -> None:
        self._graph = graph
        self._active = graph.op.Unsqueeze(active, graph.constant([1, 2]))

    def update(self, state: Value, new: Value) -> None:
        """state becomes new where the row is active. `new` must be computed from `state`: the two share memory."""
        self._graph.update(state, self._graph.op.Where(self._active, new, state))


class Convolutions(Protocol):
    """A way to lay out sound and to convolve it."""

    def laid_out(self, steps: Value) -> Value:
        """[B, T, channels] -> as it is laid out here."""
        ...

    def steps(self, x: Value) -> Value:
        """The way back: [B, T, channels]."""
        ...

    def convolution(self, x: Value, key: str, length: int, *, stride: int = 1, first: Value | None = None) -> Value:
        """Causal Conv1d of a stream: T = `length` steps of `in` channels -> T / stride of `out`; stride divides T.

        The kernel sees the last (kernel - stride) inputs of the previous frame, zeros before the first one. Where
        `first` [B] bool is given, a row's first frame sees its own first step repeated instead (replicate padding).
        """
        ...

    def transposed(self, x: Value, key: str, steps: int, *, stride: int, groups: int = 1) -> Value:
        """Causal ConvTranspose1d of a stream, its kernel twice its stride: `steps` -> steps * stride."""
        ...


class ChannelsFirst:
    """Sound is [B, channels, T]."""

    def __init__(self, weights: Weights, active: ActiveRows) -> None:
        self._weights = weights
        self._graph = weights.graph
        self._active = active

    def laid_out(self, steps: Value) -> Value:
        return self._graph.op.Transpose(steps, perm=[0, 2, 1])

    def steps(self, x: Value) -> Value:
        return self._graph.op.Transpose(x, perm=[0, 2, 1])

    def convolution(self, x: Value, key: str, length: int, *, stride: int = 1, first: Value | None = None) -> Value:
        graph, op, weights = self._graph, self._graph.op, self._weights
        _, channels, kernel = weights.source.shape(f"{key}.weight")
        left = kernel - stride
        padded = x
        if left > 0:
            state = graph.state(key, (channels, left))
            before = state
            if first is not None:
                column = op.Slice(x, graph.constant([0]), graph.constant([1]), graph.constant([2]))
                repeated = op.Expand(column, graph.constant([1, 1, left]))
                before = op.Where(op.Unsqueeze(first, graph.constant([1, 2])), repeated, state)
            padded = op.Concat(before, x, axis=2)
            last = op.Slice(padded, graph.constant([-left]), graph.constant([2**31]), graph.constant([2]))
            self._active.update(state, last)
        bias = [weights.tensor(f"{key}.bias")] if f"{key}.bias" in weights.source else []
        return op.Conv(padded, weights.tensor(f"{key}.weight"), *bias, strides=[stride], kernel_shape=[kernel])

    def transposed(self, x: Value, key: str, steps: int, *, stride: int, groups: int = 1) -> Value:
        """The last (kernel - stride) outputs of a frame are partial sums: kept, and added to the next frame's first."""
        graph, op, weights = self._graph, self._graph.op, self._weights
        _, channels, kernel = weights.source.shape(f"{key}.weight")
        overlap = kernel - stride
        partial = graph.state(key, (channels * groups, overlap))
        weight = weights.tensor(f"{key}.weight")
        full = op.ConvTranspose(x, weight, strides=[stride], group=groups, kernel_shape=[kernel])
        axis = graph.constant([2])
        head = op.Slice(full, graph.constant([0]), graph.constant([overlap]), axis)
        tail = op.Slice(full, graph.constant([overlap]), graph.constant([2**31]), axis)
        total = op.Concat(op.Add(head, partial), tail, axis=2)
        length = steps * stride
        self._active.update(partial, op.Slice(total, graph.constant([length]), graph.constant([2**31]), axis))
        y = op.Slice(total, graph.constant([0]), graph.constant([length]), axis)
        if f"{key}.bias" in weights.source:
            y = op.Add(y, op.Unsqueeze(weights.tensor(f"{key}.bias"), graph.constant([1])))
        return y
