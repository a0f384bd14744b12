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
    """Change level (-9 to +6 dB) and spectral tilt; in half of the cases add noise, 8 to 40 dB below the speech."""
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


def _one_pole(noise: Sound, color: float) -> Sound:
    """Low-pass noise: a short response stands in for the recursion."""
    return np.convolve(noise, color ** np.arange(64), mode="same").astype(np.float32)
