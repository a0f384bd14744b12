"""Sampling inside a graph: greedy at temperature 0, else temperature and top-k by inversion of uniform draws."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from model_repository.graph.builder import Graph, Value

GUESSES = 2
"""Draws from the whole vocabulary that are tried before it is sorted."""

_BLOCK = 32


def sample(
    graph: Graph, logits: Value, noise: Value, top_k: Value, temperature: Value, candidates: int | None = None
) -> Value:
    """One token per row -> [B] int64, from the softmax of logit / temperature over the top_k largest logits.

    logits [B, V] float32; noise [B, 1] float32, uniform in (0, 1); top_k [B] int64 in 1..V, and at most `candidates`;
    temperature [B] float32 >= 0. Equal logits rank by id, so temperature 0 is the first maximum, as in the reference.
    Sorts as many logits as the row with the largest top_k has; what a row draws does not depend on that. With
    `candidates` it always sorts so many, and has the same shapes in every run.
    """
    op = graph.op
    if candidates is None:
        most = op.ReduceMax(top_k, keepdims=1)
        one = graph.constant(np.int64(1))
        ranks = op.Range(graph.constant(np.int64(0)), op.Squeeze(most, graph.constant([0])), one)
    else:
        most = graph.constant([candidates])
        ranks = graph.constant(np.arange(candidates))
    values, tokens = op.TopK(logits, most, axis=-1, largest=1, sorted=1, _outputs=2)
    divisor = _column(graph, _divisor(graph, temperature))
    top_k = _column(graph, op.Where(_greedy(graph, temperature), graph.constant([1]), top_k))
    allowed = op.Less(ranks, top_k)
    if candidates is None:
        first = op.Slice(values, graph.constant([0]), graph.constant([1]), graph.constant([1]))
        weights = op.Where(allowed, op.Exp(op.Div(op.Sub(values, first), divisor)), graph.constant(np.float32(0)))
        sums = op.CumSum(weights, graph.constant(np.int64(1)))
        total = op.Slice(sums, graph.constant([-1]), graph.constant([2**31]), graph.constant([1]))
        noise = op.Mul(noise, total)
    else:
        # Fewer nodes; and CUDA's CumSum adds up each of its sums from the start.
        scores = op.Where(allowed, op.Div(values, divisor), graph.constant(np.float32(-1e30)))
        sums = _cumulative(graph, op.Softmax(scores, axis=-1), candidates)
    # The last sum may be rounded to less than the noise.
    rank = op.Min(_count(graph, op.LessOrEqual(sums, noise)), op.Sub(top_k, graph.constant([[1]])))
    return op.Squeeze(op.GatherElements(tokens, rank, axis=-1), graph.constant([1]))


def sample_by_rejection(
    graph: Graph,
    logits: Value,
    vocabulary: int,
    noise: Value,
    top_k: Value,
    temperature: Value,
) -> Value:
    """The same distribution with less work where top_k is a large part of the vocabulary and holds nearly all of the
    probability: noise [B, GUESSES + 1].

    A token drawn from the whole softmax is a draw from its top_k if it is one of them (rejection sampling), and that
    it is takes counting the larger logits, not sorting them. Rows whose guesses are all outside draw by `sample` from
    the last column of `noise`, whatever the other rows do.
    """
    op = graph.op
    sums = _cumulative(
        graph, op.Softmax(op.Div(logits, _column(graph, _divisor(graph, temperature))), axis=-1), vocabulary
    )
    guesses = op.Slice(noise, graph.constant([0]), graph.constant([GUESSES]), graph.constant([1]))
    total = op.Slice(sums, graph.constant([-1]), graph.constant([2**31]), graph.constant([1]))
    below = op.LessOrEqual(_row(graph, sums), _column(graph, op.Mul(guesses, total)))
    drawn = op.Min(_count(graph, below, keepdims=0), graph.constant([[vocabulary - 1]]))
    guessed = op.GatherElements(logits, drawn, axis=1)
    larger = _count(graph, op.Greater(_row(graph, logits), _column(graph, guessed)), keepdims=0)
    good = op.Less(larger, _column(graph, top_k))
    last = op.Slice(noise, graph.constant([GUESSES]), graph.constant([GUESSES + 1]), graph.constant([1]))
    greedy = _greedy(graph, temperature)
    best = op.ArgMax(op.Cast(good, to=ir.DataType.UINT8), axis=1, keepdims=1)
    token = op.Squeeze(op.GatherElements(drawn, best, axis=1), graph.constant([1]))
    found = op.Squeeze(op.GatherElements(good, best, axis=1), graph.constant([1]))

    settled = op.Where(greedy, op.ArgMax(logits, axis=1, keepdims=0), token)
    missed = op.Not(op.Or(greedy, found))

    def sort(op: Value) -> Value:
        return op.Where(missed, sample(graph, logits, last, top_k, temperature), settled)

    return graph.choose(
        op.Cast(op.ReduceMax(op.Cast(missed, to=ir.DataType.INT32), keepdims=0), to=ir.DataType.BOOL), sort, settled
    )


def _cumulative(graph: Graph, p: Value, vocabulary: int) -> Value:
    """Cumulative sums [B, V]: within blocks and over blocks, as two products with triangles of ones."""
    op = graph.op
    block = max(size for size in range(1, _BLOCK + 1) if vocabulary % size == 0)
    blocks = vocabulary // block
    within = op.MatMul(
        op.Reshape(p, graph.constant([0, blocks, block])), graph.constant(np.triu(np.ones((block, block), np.float32)))
    )
    totals = op.Squeeze(
        op.Slice(within, graph.constant([-1]), graph.constant([2**31]), graph.constant([2])), graph.constant([2])
    )
    before = op.MatMul(totals, graph.constant(np.triu(np.ones((blocks, blocks), np.float32), 1)))
    return op.Reshape(op.Add(within, op.Unsqueeze(before, graph.constant([2]))), graph.constant([0, vocabulary]))


def _count(graph: Graph, flags: Value, keepdims: int = 1) -> Value:
    """How many of the last axis are true, int64; sums of ones are exact in float32."""
    op = graph.op
    ones = op.Cast(flags, to=ir.DataType.FLOAT)
    return op.Cast(op.ReduceSum(ones, graph.constant([-1]), keepdims=keepdims), to=ir.DataType.INT64)


def _greedy(graph: Graph, temperature: Value) -> Value:
    return graph.op.Equal(temperature, graph.constant(np.float32(0)))


def _divisor(graph: Graph, temperature: Value) -> Value:
    """The temperature, 1 where it is 0."""
    return graph.op.Where(_greedy(graph, temperature), graph.constant(np.float32(1)), temperature)


def _column(graph: Graph, x: Value) -> Value:
    return graph.op.Unsqueeze(x, graph.constant([-1]))


def _row(graph: Graph, x: Value) -> Value:
    return graph.op.Unsqueeze(x, graph.constant([1]))
