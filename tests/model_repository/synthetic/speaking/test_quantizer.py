"""The codebooks: silence has the published codes, and voice, content and pitch do not disturb each other."""

from __future__ import annotations

import numpy as np
import pytest

from model_repository.prompt_codes import SILENCE
from model_repository.synthetic.speaking.quantizer import (
    CONTENT,
    PITCH,
    VOICE,
    Quantizer,
    fit_quantizer,
    k_means,
    pitch_centroids,
    silence_codes,
    voice_centroids,
)

CARD = 256


@pytest.fixture(scope="module")
def content() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3000, CONTENT.stop)).astype(np.float32)


@pytest.fixture(scope="module")
def quantizer(content: np.ndarray) -> Quantizer:
    return fit_quantizer(content, np.full(CONTENT.stop, -3, np.float32), CARD, seed=0)


def test_k_means_finds_separate_groups() -> None:
    generator = np.random.default_rng(1)
    centers = np.array([[0, 0], [10, 0], [0, 10]], np.float32)
    samples = np.concatenate([center + 0.1 * generator.standard_normal((50, 2)) for center in centers])
    found = k_means(samples.astype(np.float32), 3, generator)
    assert sorted(np.rint(found).tolist()) == sorted(centers.tolist())


def test_silence_is_quantized_exactly_to_the_published_codes(quantizer: Quantizer) -> None:
    silent = np.zeros((1, 64), np.float32)
    silent[:, CONTENT] = -3
    codes = quantizer.encode(silent)
    assert codes[0].tolist() == [code % CARD for code in SILENCE[1:]]
    np.testing.assert_allclose(quantizer.decode(codes), silent, atol=1e-6)


def test_voice_and_pitch_are_restored_and_leave_the_content_alone(quantizer: Quantizer, content: np.ndarray) -> None:
    plain = np.zeros((200, 64), np.float32)
    plain[:, CONTENT] = content[:200]
    spoken = plain.copy()
    voices, pitches = np.arange(200) % 18, np.arange(200) % len(pitch_centroids())
    spoken[:, VOICE] = voice_centroids()[voices]
    spoken[:, PITCH] = pitch_centroids()[pitches]
    codes = quantizer.encode(spoken)
    assert codes[:, 0].tolist() == voices.tolist()
    assert codes[:, 6].tolist() == pitches.tolist()
    np.testing.assert_array_equal(codes[:, 1:6], quantizer.encode(plain)[:, 1:6])
    np.testing.assert_allclose(quantizer.decode(codes)[:, VOICE], spoken[:, VOICE], atol=1e-6)
    np.testing.assert_allclose(quantizer.decode(codes)[:, PITCH], spoken[:, PITCH], atol=1e-6)


def test_more_codebooks_lose_less(quantizer: Quantizer, content: np.ndarray) -> None:
    latents = np.zeros((len(content), 64), np.float32)
    latents[:, CONTENT] = content
    error = np.square(quantizer.decode(quantizer.encode(latents)) - latents)[:, CONTENT].mean()
    assert error < 0.5


def test_voices_differ_in_three_dimensions() -> None:
    corners = voice_centroids()
    assert corners.shape == (18, 10)
    distances = np.count_nonzero(corners[:, None] != corners[None], axis=2)
    assert distances[~np.eye(18, dtype=bool)].min() >= 3


def test_the_silent_codes_are_the_published_ones_modulo_the_card() -> None:
    assert silence_codes(256).tolist() == [180, 243, 154, 34, 200, 6, 186, 216]
    assert silence_codes(2048).tolist() == list(SILENCE)
