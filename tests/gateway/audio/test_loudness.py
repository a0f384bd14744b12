"""Voice recordings at the loudness of training."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.audio.loudness import normalise
from gateway.errors import AudioError

RATE = 24_000
TONE = (0.5 * np.sin(2 * np.pi * 997 * np.arange(RATE) / RATE)).astype(np.float32)


@pytest.mark.parametrize("gain", [0.01, 1.0, 1.9])
def test_any_level_is_normalized_to_minus_24_lufs(gain: float):
    # Imported here because it imports SciPy, and every worker imports this file.
    import pyloudnorm

    level = pyloudnorm.Meter(RATE).integrated_loudness(normalise(TONE * np.float32(gain), RATE).astype(np.float64))
    assert level == pytest.approx(-24.0, abs=0.01)


def test_a_peak_is_not_clipped():
    quiet_with_a_click = TONE * np.float32(0.001)
    quiet_with_a_click[100] = 0.5
    assert np.abs(normalise(quiet_with_a_click, RATE)).max() > 1.0


def test_less_than_a_gating_block_is_rejected():
    with pytest.raises(AudioError, match=r"expected at least 0\.4 s of voice, got 0\.39 s") as refused:
        normalise(TONE[: int(0.39 * RATE)], RATE)
    assert refused.value.field == "voice_audio"


def test_silence_is_rejected():
    with pytest.raises(AudioError, match="got silence"):
        normalise(np.zeros(RATE, np.float32), RATE)
