"""How far the outputs of one repository are from another's, over the same conversation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_repository.evaluation.conversation import AGENT, TEXT
from model_repository.evaluation.teacher_forcing import Record

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """A value over columns: its mean, its least and its percentiles."""

    mean: float
    min: float
    p1: float
    p10: float
    median: float

    @classmethod
    def of(cls, values: Float64) -> Spread:
        return cls(float(values.mean()), float(values.min()), *(float(v) for v in np.percentile(values, (1, 10, 50))))


@dataclass(frozen=True)
class Tokens:
    """Tokens of one kind, given the reference's own ones before them.

    agreement: share of columns where the first choice is the reference's. perplexity: of the reference's tokens;
    reference: the same by the reference itself; change: perplexity / reference - 1. divergence: mean
    Kullback-Leibler divergence of the distribution from the reference's, in nats.
    """

    agreement: float
    perplexity: float
    reference: float
    change: float
    divergence: float

    @classmethod
    def of(cls, scores: Float64) -> Tokens:
        """From `_scores`."""
        agreement, surprise, expected, divergence = (float(mean) for mean in scores.mean(axis=1))
        ours, theirs = float(np.exp(surprise)), float(np.exp(expected))
        return cls(agreement, ours, theirs, ours / theirs - 1, divergence)


@dataclass(frozen=True)
class LayerError:
    """The residual stream after a layer: root mean square of the difference over that of the reference, and cosine."""

    layer: int
    error: float
    cosine: float


@dataclass(frozen=True)
class Quality:
    """One repository against the reference. `audio_by_codebook`: agreement of each of the agent's 8 codebooks."""

    hidden_cosine: Spread
    hidden_error: float
    text: Tokens
    audio: Tokens
    audio_by_codebook: list[float]
    layers: list[LayerError]


def compare(reference: Record, other: Record, columns: NDArray[np.int64]) -> Quality:
    """`columns` [T + 1, 17]: the conversation over which both were recorded."""
    text, audio = columns[1:, TEXT], columns[1:, AGENT]
    codebooks = range(audio.shape[1])
    each = [_scores(reference.audio_logits[:, step], other.audio_logits[:, step], audio[:, step]) for step in codebooks]
    layers = range(reference.layers.shape[1] if len(reference.layers) else 0)
    pairs = [(reference.layers[:, layer], other.layers[:, layer]) for layer in layers]
    return Quality(
        hidden_cosine=Spread.of(_cosines(reference.hidden, other.hidden)),
        hidden_error=_relative_error(reference.hidden, other.hidden),
        text=Tokens.of(_scores(reference.text_logits, other.text_logits, text)),
        audio=Tokens.of(np.concatenate(each, axis=1)),
        audio_by_codebook=[float(scores[0].mean()) for scores in each],
        layers=[
            LayerError(layer, _relative_error(*pair), float(_cosines(*pair).mean())) for layer, pair in enumerate(pairs)
        ],
    )


def _scores(reference: NDArray[np.float32], other: NDArray[np.float32], given: NDArray[np.int64]) -> Float64:
    """Of each token [T] that came, from the logits [T, V] of both, row by row, for they may be large: [4, T] with
    whether the first choice is the reference's, -ln p by the other and by the reference, and the divergence.
    """
    scores = np.zeros((4, len(given)))
    for index, token in enumerate(given):
        theirs, ours = _log_softmax(reference[index]), _log_softmax(other[index])
        agrees = np.argmax(other[index]) == np.argmax(reference[index])
        scores[:, index] = agrees, -ours[token], -theirs[token], np.sum(np.exp(theirs) * (theirs - ours))
    return scores


def _log_softmax(logits: NDArray[np.float32]) -> Float64:
    shifted = logits.astype(np.float64) - float(logits.max())
    result: Float64 = shifted - np.log(np.exp(shifted).sum())
    return result


def _cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> Float64:
    """[T] of vectors [T, dim]; of two zero vectors 1."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    lengths = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    both_zero = ~x.any(axis=1) & ~y.any(axis=1)
    return np.where(lengths > 0, (x * y).sum(axis=1) / np.maximum(lengths, 1e-300), both_zero)


def _relative_error(reference: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    wanted = reference.astype(np.float64)
    power = float((wanted**2).sum())
    return float(np.sqrt(((other - wanted) ** 2).sum() / power)) if power else float(np.abs(other).max() > 0)
