from __future__ import annotations

from math import exp, log

import numpy as np
import pytest

from model_repository.evaluation.quality import compare
from model_repository.evaluation.teacher_forcing import Record

TOKENS = 4


def record(hidden: list[list[float]], text: list[list[float]]) -> Record:
    """Hidden states and probabilities of the text tokens at each of two columns; the audio says nothing."""
    return Record(
        hidden=np.array(hidden, np.float32),
        text_logits=np.log(np.array(text, np.float32)),
        audio_logits=np.zeros((2, 8, TOKENS), np.float32),
        layers=np.array([[[3, 4], [0, 5]]], np.float32) * hidden[0][0],
    )


REFERENCE = record([[1, 0], [0, 1]], [[0.5, 0.25, 0.125, 0.125], [0.25, 0.5, 0.125, 0.125]])
COLUMNS = np.array([[0] * 17, [0] * 17, [1] * 17], np.int64)


def test_perplexity_is_that_of_the_given_tokens() -> None:
    other = record([[1, 0], [0, 1]], [[0.125, 0.5, 0.25, 0.125], [0.25, 0.5, 0.125, 0.125]])
    text = compare(REFERENCE, other, COLUMNS).text
    assert text.reference == pytest.approx(2)
    assert text.perplexity == pytest.approx(exp(-(log(0.125) + log(0.5)) / 2))
    assert text.change == pytest.approx(1)
    assert text.agreement == 0.5
    divergence = 0.5 * log(0.5 / 0.125) + 0.25 * log(0.25 / 0.5) + 0.125 * log(0.125 / 0.25)
    assert text.divergence == pytest.approx(divergence / 2, rel=1e-5)


def test_logits_may_be_shifted() -> None:
    shifted = Record(REFERENCE.hidden, REFERENCE.text_logits + 300, REFERENCE.audio_logits, REFERENCE.layers)
    text = compare(REFERENCE, shifted, COLUMNS).text
    assert text.change == pytest.approx(0, abs=1e-4)


def test_a_vocabulary_of_equals_has_its_size_as_perplexity() -> None:
    quality = compare(REFERENCE, REFERENCE, COLUMNS)
    assert quality.audio.perplexity == pytest.approx(TOKENS)
    assert quality.audio_by_codebook == [1] * 8


def test_cosines_are_of_columns() -> None:
    turned = record([[1, 1], [0, 2]], [[0.25] * 4] * 2)
    quality = compare(REFERENCE, turned, COLUMNS)
    assert quality.hidden_cosine.min == pytest.approx(0.5**0.5)
    assert quality.hidden_cosine.mean == pytest.approx((0.5**0.5 + 1) / 2)
    # Differences are (0, 1) and (0, 1), the reference's states of length 1.
    assert quality.hidden_error == pytest.approx(1)


def test_layers_have_errors_of_their_own() -> None:
    other = record([[1, 0], [0, 1]], [[0.25] * 4] * 2)
    other.layers[0, 1] = [0, 5.5]
    found = compare(REFERENCE, other, COLUMNS).layers
    assert [layer.error for layer in found] == pytest.approx([0, 0.1])
    assert [layer.cosine for layer in found] == pytest.approx([1, 1])


def test_silence_is_like_silence_alone() -> None:
    silent = record([[0, 0], [0, 0]], [[0.25] * 4] * 2)
    assert compare(silent, silent, COLUMNS).hidden_cosine.mean == 1
    assert compare(silent, REFERENCE, COLUMNS).hidden_cosine.mean == 0
