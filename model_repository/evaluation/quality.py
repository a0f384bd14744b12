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
    cosines = [_cosine(a, b) for a, b in zip(reference.hidden, other.hidden, strict=True)]
    codebooks = range(audio.shape[1])
    each = [_tokens(reference.audio_logits[:, step], other.audio_logits[:, step], audio[:, step]) for step in codebooks]
    return Quality(
        hidden_cosine=Spread.of(np.array(cosines)),
        hidden_error=_relative_error(reference.hidden, other.hidden),
        text=_tokens(reference.text_logits, other.text_logits, text).summary(),
        audio=_Scores.joined(each).summary(),
        audio_by_codebook=[float(scores.agree.mean()) for scores in each],
        layers=[
            LayerError(
                layer,
                _relative_error(reference.layers[:, layer], other.layers[:, layer]),
                float(
                    np.mean(
                        [_cosine(a, b) for a, b in zip(reference.layers[:, layer], other.layers[:, layer], strict=True)]
                    )
                ),
            )
            for layer in range(reference.layers.shape[1] if len(reference.layers) else 0)
        ],
    )


@dataclass(frozen=True, eq=False)
class _Scores:
    """Of each token: whether the first choice is the reference's, -ln p by both, and the divergence."""

    agree: NDArray[np.bool_]
    surprise: Float64
    reference: Float64
    divergence: Float64

    @classmethod
    def joined(cls, parts: list[_Scores]) -> _Scores:
        names = ("agree", "surprise", "reference", "divergence")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def summary(self) -> Tokens:
        ours, theirs = float(np.exp(self.surprise.mean())), float(np.exp(self.reference.mean()))
        return Tokens(
            agreement=float(self.agree.mean()),
            perplexity=ours,
            reference=theirs,
            change=ours / theirs - 1,
            divergence=float(self.divergence.mean()),
        )


def _tokens(reference: NDArray[np.float32], other: NDArray[np.float32], given: NDArray[np.int64]) -> _Scores:
    """Logits [T, V] of both for the tokens [T] that came; row by row, for they may be large."""
    agree = np.zeros(len(given), np.bool_)
    surprise, expected, divergence = (np.zeros(len(given)) for _ in range(3))
    for index, token in enumerate(given):
        theirs, ours = _log_softmax(reference[index]), _log_softmax(other[index])
        agree[index] = int(np.argmax(other[index])) == int(np.argmax(reference[index]))
        surprise[index], expected[index] = -ours[token], -theirs[token]
        divergence[index] = np.sum(np.exp(theirs) * (theirs - ours))
    return _Scores(agree, surprise, expected, divergence)


def _log_softmax(logits: NDArray[np.float32]) -> Float64:
    shifted = logits.astype(np.float64) - float(logits.max())
    result: Float64 = shifted - np.log(np.exp(shifted).sum())
    return result


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    x, y = a.astype(np.float64), b.astype(np.float64)
    length = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / length if length else float(not x.any() and not y.any())


def _relative_error(reference: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    wanted = reference.astype(np.float64)
    power = float((wanted**2).sum())
    return float(np.sqrt(((other - wanted) ** 2).sum() / power)) if power else float(np.abs(other).max() > 0)
