"""Normalise the loudness of voice recordings to the training data's (ITU-R BS.1770, by pyloudnorm)."""

from __future__ import annotations

import numpy as np

from gateway.audio.samples import Floats
from gateway.errors import AudioError

TARGET_LUFS = -24.0
# One gating block; integrated loudness is undefined for less.
MIN_SECONDS = 0.4


def load() -> None:
    """Import pyloudnorm. It imports SciPy, which takes 2 s of CPU time, so that it is not imported with this module.

    A service that normalises recordings calls this before its first session: the import would delay live frames.
    """
    import pyloudnorm  # noqa: F401


def normalise(pcm: Floats, sample_rate: int, field: str = "voice_audio") -> Floats:
    """Scale [T] float32 to -24 LUFS, without clipping. Raises AudioError if too short or silent."""
    import pyloudnorm

    if len(pcm) < MIN_SECONDS * sample_rate:
        raise AudioError(f"expected at least {MIN_SECONDS} s of voice, got {len(pcm) / sample_rate:.2f} s", field)
    exact = pcm.astype(np.float64)
    loudness = pyloudnorm.Meter(sample_rate).integrated_loudness(exact)
    if not np.isfinite(loudness):
        raise AudioError("expected a voice, got silence", field)
    scaled: Floats = (exact * 10.0 ** ((TARGET_LUFS - loudness) / 20.0)).astype(np.float32)
    return scaled
