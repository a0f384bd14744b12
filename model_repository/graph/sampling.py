"""Sampling inside a graph: greedy at temperature 0, else the Gumbel-max form of temperature and top-k."""

from __future__ import annotations

import numpy as np

from model_repository.graph.builder import Graph, Value


def sample(graph: Graph, logits: Value, noise: Value, top_k: Value, temperature: Value) -> Value:
    """One token per row -> [B] int64.

    logits [B, V] float32; noise [B, K] float32, uniform in (0, 1), one draw per rank, with K >= every row's top_k;
    top_k [B] int64 in 1..K; temperature [B] float32 >= 0.

    argmax(logit + temperature * g) with g = -log(-log u) over the top_k largest logits has the distribution of the
    reference's softmax(logit / temperature) restricted to them (Gumbel-max). K is the noise's own width, and a row's
    ranks and draws do not depend on it, so neighbours with a larger top_k change nothing. Equal logits rank by id, so
    temperature 0 is the first maximum, as in the reference.
    """
    op = graph.op
    width = op.Shape(noise, start=1, end=2)
    values, tokens = op.TopK(logits, width, axis=-1, largest=1, sorted=1, _outputs=2)
    gumbel = op.Neg(op.Log(op.Neg(op.Log(noise))))
    keys = op.Add(values, op.Mul(op.Unsqueeze(temperature, graph.constant([1])), gumbel))
    ranks = op.Range(graph.constant(np.int64(0)), op.Squeeze(width, graph.constant([0])), graph.constant(np.int64(1)))
    allowed = op.Less(ranks, op.Unsqueeze(top_k, graph.constant([1])))
    best = op.ArgMax(op.Where(allowed, keys, graph.constant(np.float32(-1e30))), axis=-1, keepdims=1)
    return op.Squeeze(op.GatherElements(tokens, best, axis=-1), graph.constant([1]))
