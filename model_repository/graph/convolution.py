"""Streaming convolutions of Mimi: each keeps per row just the samples or partial sums that the next frame needs."""

from __future__ import annotations

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


def convolution(
    weights: Weights, x: Value, key: str, active: ActiveRows, *, stride: int = 1, first: Value | None = None
) -> Value:
    """Causal Conv1d of a stream: x [B, in, T] -> [B, out, T / stride]. T must be a multiple of the stride.

    The kernel sees the last (kernel - stride) inputs of the previous frame, zeros before the first one. Where `first`
    [B] bool is given, a row's first frame sees its own first column repeated instead (replicate padding).
    """
    graph, op = weights.graph, weights.graph.op
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
        active.update(state, op.Slice(padded, graph.constant([-left]), graph.constant([2**31]), graph.constant([2])))
    bias = [weights.tensor(f"{key}.bias")] if f"{key}.bias" in weights.source else []
    return op.Conv(padded, weights.tensor(f"{key}.weight"), *bias, strides=[stride], kernel_shape=[kernel])


def transposed_convolution(
    weights: Weights, x: Value, key: str, active: ActiveRows, *, stride: int, steps: int, groups: int = 1
) -> Value:
    """Causal ConvTranspose1d of a stream: x [B, in, steps] -> [B, out, steps * stride].

    The last (kernel - stride) outputs of a frame are partial sums: they are kept and added to the next frame's first.
    """
    graph, op = weights.graph, weights.graph.op
    _, channels, kernel = weights.source.shape(f"{key}.weight")
    overlap = kernel - stride
    partial = graph.state(key, (channels * groups, overlap))
    full = op.ConvTranspose(x, weights.tensor(f"{key}.weight"), strides=[stride], group=groups, kernel_shape=[kernel])
    axis = graph.constant([2])
    head = op.Slice(full, graph.constant([0]), graph.constant([overlap]), axis)
    tail = op.Slice(full, graph.constant([overlap]), graph.constant([2**31]), axis)
    total = op.Concat(op.Add(head, partial), tail, axis=2)
    length = steps * stride
    active.update(partial, op.Slice(total, graph.constant([length]), graph.constant([2**31]), axis))
    y = op.Slice(total, graph.constant([0]), graph.constant([length]), axis)
    if f"{key}.bias" in weights.source:
        y = op.Add(y, op.Unsqueeze(weights.tensor(f"{key}.bias"), graph.constant([1])))
    return y
