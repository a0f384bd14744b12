"""A signal that has what a codec hears in speech, for evaluations without a recording."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_FORMANTS = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (660, 1720, 2410))
"""First three resonances in Hz of the vowels a, i, u, e and æ (Peterson and Barney, 1952, men)."""

_BANDWIDTHS = (90.0, 110.0, 170.0)
_LEVEL = 0.1
"""Root mean square of the voiced parts, of full scale 1: about -20 dB, as people speak into a headset."""


def synthetic_speech(seconds: float, sample_rate: int, seed: int = 0) -> NDArray[np.float32]:
    """[seconds * sample_rate] float32, a function of the seed.

    Syllables of 120 to 320 ms follow one another in phrases of 3 to 9, with pauses of 150 to 600 ms between phrases.
    A syllable is a vowel: harmonics of a pitch that glides within 90 to 220 Hz and falls along the phrase, weighted by
    the vowel's formants, under a raised-cosine envelope; two of five begin with 60 ms of noise above 3 kHz. Noise at
    -60 dB lies under everything. It is no language, but has the pitch, formants, onsets and pauses of one.
    """
    random = np.random.default_rng([seed, 17])
    total = round(seconds * sample_rate)
    pcm = (1e-3 * random.standard_normal(total)).astype(np.float64)
    at = int(random.uniform(0.05, 0.3) * sample_rate)
    while at < total:
        pitch = random.uniform(120, 220)
        for _ in range(int(random.integers(3, 10))):
            syllable = _syllable(random, pitch, sample_rate)
            end = min(at + len(syllable), total)
            pcm[at:end] += syllable[: max(end - at, 0)]
            at += len(syllable)
            pitch = max(90.0, pitch * random.uniform(0.9, 1.03))
        at += int(random.uniform(0.15, 0.6) * sample_rate)
    return pcm.clip(-1, 1).astype(np.float32)


def _syllable(random: np.random.Generator, pitch: float, sample_rate: int) -> NDArray[np.float64]:
    length = int(random.uniform(0.12, 0.32) * sample_rate)
    glide = pitch * np.linspace(random.uniform(0.95, 1.08), random.uniform(0.9, 1.05), length)
    phase = 2 * np.pi * np.cumsum(glide) / sample_rate
    formants = _FORMANTS[int(random.integers(len(_FORMANTS)))]
    sound = np.zeros(length)
    for harmonic in range(1, int(4000 / pitch)):
        frequency = harmonic * pitch
        gain = sum(
            weight / (1 + ((frequency - formant) / width) ** 2)
            for weight, formant, width in zip((1.0, 0.6, 0.3), formants, _BANDWIDTHS, strict=True)
        )
        sound += (gain + 0.02) * np.sin(harmonic * phase + random.uniform(0, 2 * np.pi))
    sound *= np.sin(np.pi * np.arange(length) / length) ** 2
    sound *= _LEVEL / max(float(np.sqrt(np.mean(sound**2))), 1e-9)
    if random.random() < 0.4:
        burst = np.diff(random.standard_normal(round(0.06 * sample_rate) + 2), n=2)
        burst *= 0.3 * _LEVEL * np.hanning(len(burst)) / np.sqrt(6)
        sound[: len(burst)] += burst[:length]
    return sound
