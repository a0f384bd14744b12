"""Changes to users' speech that speakers and calls make: speed, pitch, formants, level, noise, frequency response."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import soxr
import torch
from torch import Tensor

from model_repository.checkpoint.geometry import SAMPLE_RATE
from model_repository.synthetic.speaking.engines import Sound
from model_repository.synthetic.speaking.features import BANDS, Floats, band_centres


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


_CURVE_POINTS, _CURVE = 6, 0.4
"""Points of what changes over the bands; deviation in nepers of a line's frequency response at each of them."""

_SHIFT = 1.0
"""Deviation in bands by which each of the points moves: vowels lie elsewhere in other accents."""

_CONTRAST = 0.22
"""Deviation in nepers of the factor by which the spectrum departs from its mean, at each of the points."""

_BAND_MASKS, _MASKED_BANDS = 2, 6
_STEP_MASKS, _MASKED_STEPS = 2, 6
"""Stretches of bands and of steps of 40 ms that are masked in half of the cases, and one more than their most."""


@dataclass(frozen=True, eq=False)
class FeatureSpectra:
    """Linear maps between the features of the front end and log-mel spectra, so that features can change as sound does.

    `spectra` [dim + 1, D]: features to spectra, the last row is the constant. `features` [D, dim]: differences of
    spectra to differences of features. D is a multiple of BANDS: the spectra of one step of 40 ms.
    """

    spectra: Tensor
    features: Tensor

    @classmethod
    def fit(cls, features: Floats, spectra: Floats) -> FeatureSpectra:
        """Fit to the features [n, dim] and the log-mel patches [n, D] of the same sound."""
        extended = np.concatenate([features, np.ones((len(features), 1), np.float32)], axis=1)
        centred = spectra - spectra.mean(0)
        return cls(
            torch.from_numpy(np.linalg.lstsq(extended, spectra, rcond=None)[0].astype(np.float32)),
            torch.from_numpy(np.linalg.lstsq(centred, features - features.mean(0), rcond=None)[0].astype(np.float32)),
        )

    def varied(self, features: Tensor, generator: np.random.Generator) -> Tensor:
        """Features [N, S, dim] as if from other speakers and lines, with parts masked.

        Formants move by up to 14 % together, and each by a further random shift. Their contrast changes. The line has a
        random frequency response, and there is noise.
        """
        count, steps, dim = features.shape
        bands = (features @ self.spectra[:dim] + self.spectra[dim]).reshape(count, steps, -1, BANDS)
        factors = generator.uniform(0.88, 1.14, count)
        shifts = _curves(_SHIFT, count, generator)
        warps = np.stack([_warp(float(factor), shift) for factor, shift in zip(factors, shifts, strict=True)])
        changed = torch.einsum("nstb,nbc->nstc", bands, torch.from_numpy(warps))
        mean = changed.mean((1, 2), keepdim=True)
        contrast = torch.from_numpy(np.exp(_curves(_CONTRAST, count, generator)))[:, None, None]
        response = torch.from_numpy(_curves(_CURVE, count, generator))[:, None, None]
        changed = mean + contrast * (changed - mean) + response
        masked = np.ones((count, BANDS), np.float32)
        heard = np.ones((count, steps, 1), np.float32)
        for row in range(count):
            _mask(masked[row], _BAND_MASKS, _MASKED_BANDS, generator)
            _mask(heard[row], _STEP_MASKS, _MASKED_STEPS, generator)
        # What is masked has its mean.
        changed = changed.mean((1, 2), keepdim=True).lerp(changed, torch.from_numpy(masked)[:, None, None])
        output = features + (changed - bands).flatten(2) @ self.features
        output = output.mean(1, keepdim=True).lerp(output, torch.from_numpy(heard))
        return output + 0.1 * torch.from_numpy(generator.standard_normal(features.shape, np.float32))


def _curves(deviation: float, count: int, generator: np.random.Generator) -> Floats:
    """Random values [count, BANDS] that change smoothly over the bands."""
    points = deviation * generator.standard_normal((count, _CURVE_POINTS))
    places = np.linspace(0, _CURVE_POINTS - 1, BANDS)
    return np.stack([np.interp(places, np.arange(_CURVE_POINTS), row) for row in points]).astype(np.float32)


def _warp(factor: float, shift: Floats) -> Floats:
    """A matrix [BANDS, BANDS] that moves spectra up by a factor of frequency, and each band by its shift [BANDS]."""
    centres = band_centres()
    places = np.clip(np.interp(centres / factor, centres, np.arange(BANDS)) + shift, 0, BANDS - 1)
    low = np.minimum(places.astype(int), BANDS - 2)
    share = places - low
    matrix = np.zeros((BANDS, BANDS), np.float32)
    matrix[low, np.arange(BANDS)] = 1 - share
    matrix[low + 1, np.arange(BANDS)] = share
    return matrix


def _mask(kept: Floats, count: int, most: int, generator: np.random.Generator) -> None:
    """Set `count` random stretches of fewer than `most` values to 0, each in half of the cases."""
    for _ in range(count):
        if generator.random() < 0.5:
            width = int(generator.integers(1, most))
            start = int(generator.integers(0, len(kept) - width))
            kept[start : start + width] = 0
