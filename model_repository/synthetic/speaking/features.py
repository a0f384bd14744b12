"""Log-mel features of sound, causal and aligned to Mimi's steps (40 ms) and frames (80 ms), and their bases."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model_repository.checkpoint.geometry import FRAME_SIZE, SAMPLE_RATE

Floats = npt.NDArray[np.float32]

BANDS = 40
HOP = 240
"""Samples between two spectra: 10 ms, 8 a frame."""

SPECTRA = FRAME_SIZE // HOP
_WINDOW = 640
_FFT = 1024
_LOW, _HIGH = 60.0, 7600.0
_FLOOR = 1e-3
"""Added to band magnitudes: steady noise below about -60 dB looks like silence."""


def _edges(bands: int, high: float) -> npt.NDArray[np.float64]:
    """Hz of the edges [bands + 2] of mel bands from 60 Hz to `high` Hz; a band has its neighbours' centres as edges."""
    lowest, highest = (2595 * np.log10(1 + hertz / 700) for hertz in (_LOW, high))
    edges: npt.NDArray[np.float64] = 700 * (10 ** (np.linspace(lowest, highest, bands + 2) / 2595) - 1)
    return edges


def band_centres() -> npt.NDArray[np.float64]:
    """Hz of the centres [BANDS] of the bands of `log_mel`."""
    return _edges(BANDS, _HIGH)[1:-1]


def mel_filters(size: int, bands: int, high: float) -> Floats:
    """Triangular mel filters [size / 2 + 1, bands] from 60 Hz to `high` Hz; the weights of a band add up to 1."""
    edges = _edges(bands, high)
    bins = np.arange(size // 2 + 1) * SAMPLE_RATE / size
    rising = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    filters = np.maximum(0, np.minimum(rising, falling))
    return (filters / np.maximum(filters.sum(0), 1e-9)).astype(np.float32)


_FILTERS = mel_filters(_FFT, BANDS, _HIGH)


def log_mel(sound: Floats) -> Floats:
    """Log magnitudes [8 F, BANDS] of sound [1920 F]; each window ends where its hop ends."""
    padded = np.concatenate([np.zeros(_WINDOW - HOP, np.float32), sound])
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::HOP]
    spectra = np.abs(np.fft.rfft(windows * np.hanning(_WINDOW), _FFT)).astype(np.float32)
    return np.log(spectra @ _FILTERS * (2 / _WINDOW) + _FLOOR).astype(np.float32)


def patches(sound: Floats, spectra: int) -> Floats:
    """Consecutive `spectra` log-mel spectra side by side: [8 F / spectra, spectra * BANDS]."""
    return log_mel(sound).reshape(-1, spectra * BANDS)


@dataclass(frozen=True, eq=False)
class Basis:
    """Principal components of patches, half whitened: strong components stay stronger, but by less.

    `mean` [D], `components` [D, k].
    """

    mean: Floats
    components: Floats

    @classmethod
    def fit(cls, samples: Floats, count: int) -> Basis:
        """Fit to samples [n, D]."""
        mean = samples.mean(0)
        values, vectors = np.linalg.eigh(np.cov(samples - mean, rowvar=False))
        order = np.argsort(values)[::-1][:count]
        scale = np.maximum(values[order], 1e-6) ** -0.25
        components = vectors[:, order] * scale
        deviation = float(((samples - mean) @ components).std())
        return cls(mean.astype(np.float32), (components / deviation).astype(np.float32))

    def project(self, samples: Floats) -> Floats:
        """[n, D] -> [n, k]."""
        return np.asarray((samples - self.mean) @ self.components, np.float32)
