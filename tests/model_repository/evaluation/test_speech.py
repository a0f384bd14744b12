from __future__ import annotations

import numpy as np

from model_repository.evaluation.speech import synthetic_speech

RATE = 24_000


def test_the_seed_decides() -> None:
    first, again, other = (synthetic_speech(1.0, RATE, seed) for seed in (1, 1, 2))
    assert first.dtype == np.float32
    assert len(first) == RATE
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_it_speaks_and_pauses() -> None:
    """Of 20 ms windows some are as loud as speech and some are nearly silent; none clips."""
    pcm = synthetic_speech(10.0, RATE)
    levels = np.sqrt(np.mean(pcm.reshape(-1, RATE // 50) ** 2, axis=1))
    assert np.abs(pcm).max() < 1
    assert 0.3 < np.mean(levels > 0.03) < 0.9
    assert 0.05 < np.mean(levels < 0.003) < 0.5


def test_voices_have_a_pitch() -> None:
    """The loudest 40 ms repeat themselves within 1/220 to 1/80 s."""
    pcm = synthetic_speech(5.0, RATE, seed=3)
    window = RATE // 25
    at = max(range(0, len(pcm) - 2 * window, window), key=lambda start: float(np.sum(pcm[start : start + window] ** 2)))
    here = pcm[at : at + window]
    similar = [
        float(np.corrcoef(here, pcm[at + lag : at + lag + window])[0, 1]) for lag in range(RATE // 240, RATE // 80)
    ]
    assert max(similar) > 0.8
