"""Changes to users' speech that a call makes: level, noise, speed and pitch, the line's frequency response."""

from __future__ import annotations

import numpy as np
import soxr

from model_repository.checkpoint.geometry import SAMPLE_RATE
from model_repository.synthetic.speaking.engines import Sound


def vary_speaker(sound: Sound, generator: np.random.Generator) -> Sound:
    """Change speed, pitch and formants together by up to 12 %, as another speaker's."""
    factor = float(generator.uniform(0.89, 1.12))
    return np.asarray(soxr.resample(sound, SAMPLE_RATE, SAMPLE_RATE * factor, quality="LQ"), np.float32)


def vary_line(sound: Sound, generator: np.random.Generator) -> Sound:
    """Change level (-9 to +6 dB) and spectral tilt; in a part of the cases add a room, a telephone's band or noise.

    Noise is 8 to 40 dB below the speech.
    """
    if generator.random() < 0.3:
        sound = _in_room(sound, generator)
    if generator.random() < 0.2:
        rate = int(generator.choice([8_000, 12_000]))
        narrow = soxr.resample(sound, SAMPLE_RATE, rate, quality="LQ")
        wide = soxr.resample(narrow, rate, SAMPLE_RATE, quality="LQ")
        sound = np.pad(wide, (0, max(0, len(sound) - len(wide))))[: len(sound)].astype(np.float32)
    gain = 10 ** (generator.uniform(-9, 6) / 20)
    tilt = generator.uniform(-0.3, 0.3)
    output = sound.copy()
    output[1:] += tilt * sound[:-1]
    output *= gain
    if generator.random() < 0.5:
        noise = generator.standard_normal(len(sound)).astype(np.float32)
        color = generator.uniform(0, 0.95)
        noise = _one_pole(noise, color)
        level = float(np.sqrt(np.mean(np.square(output)))) * 10 ** (-generator.uniform(8, 40) / 20)
        output += noise * (level / (float(noise.std()) + 1e-9))
    return np.asarray(output, np.float32)


def _in_room(sound: Sound, generator: np.random.Generator) -> Sound:
    """Add the reverberation of a room: a decaying noise, 60 dB down after 0.1 to 0.5 s, 6 to 20 dB below the sound."""
    decay = generator.uniform(0.1, 0.5)
    times = np.arange(int(0.6 * decay * SAMPLE_RATE)) / SAMPLE_RATE
    tail = generator.standard_normal(len(times)) * 10 ** (-3 * times / decay)
    tail *= 10 ** (-generator.uniform(6, 20) / 20) / np.sqrt(np.square(tail).sum())
    response = np.concatenate([[1.0], np.zeros(int(generator.uniform(0.001, 0.01) * SAMPLE_RATE)), tail])
    size = len(sound) + len(response)
    spectrum = np.fft.rfft(sound, size) * np.fft.rfft(response, size)
    return np.fft.irfft(spectrum, size)[: len(sound)].astype(np.float32)


def _one_pole(noise: Sound, color: float) -> Sound:
    """Low-pass noise: a short response stands in for the recursion."""
    return np.convolve(noise, color ** np.arange(64), mode="same").astype(np.float32)
