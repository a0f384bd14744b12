"""The vocoder's output follows from its parameters frame by frame: phase, pitch and noise."""

from __future__ import annotations

import numpy as np
import pytest

from model_repository.synthetic.speaking.vocoder import (
    HOPS,
    MAX_CYCLES,
    MIN_CYCLES,
    Analysis,
    Voice,
    as_voice,
    cycles_of,
    pulses,
    synthesize,
)

FRAME = 1920


def analysis(frames: int, pitch: float) -> Analysis:
    """A steady vowel with a formant at 700 Hz."""
    bins = np.arange(513) * 24_000 / 1024
    envelope = 1e-3 / (1 + np.square((bins - 700) / 150)) + 1e-7
    count = frames * HOPS
    return Analysis(np.full(count, pitch), np.tile(envelope, (count, 1)), np.full((count, 513), 0.1))


@pytest.mark.parametrize("cycles", [[8, 8, 8], [8, 9, 11, 10], [30, 5, 30], [16, 16, 5]])
def test_every_frame_has_its_number_of_pulses(cycles: list[int]) -> None:
    frames = pulses(np.array(cycles)).reshape(len(cycles), FRAME)
    for count, frame in zip(cycles, frames, strict=True):
        high = frame > 0.2 * np.sqrt(FRAME / count)
        assert np.count_nonzero(high & ~np.roll(high, 1)) == count
        assert frame.mean() == pytest.approx(0, abs=1e-3)


def test_equal_frames_sound_equal_once_their_history_is() -> None:
    sound = synthesize(analysis(6, 150), np.full(6, 12)).reshape(6, FRAME)
    np.testing.assert_allclose(sound[4], sound[3], atol=1e-4)
    assert np.abs(sound[3]).max() > 0.01


def test_the_pitch_is_that_of_the_cycles() -> None:
    sound = synthesize(analysis(8, 150), np.full(8, 16))[2 * FRAME : 6 * FRAME]
    spectrum = np.abs(np.fft.rfft(sound))
    frequencies = np.fft.rfftfreq(len(sound), 1 / 24_000)
    harmonics = np.isclose(frequencies % 200, 0) & (frequencies > 100) & (frequencies < 2000)
    between = np.isclose(frequencies % 200, 100) & (frequencies > 100) & (frequencies < 2000)
    assert spectrum[harmonics].mean() > 10 * spectrum[between].mean()


def test_cycles_follow_the_pitch_and_bridge_unvoiced_frames() -> None:
    pitch = np.concatenate([np.full(HOPS, 100.0), np.zeros(HOPS), np.full(HOPS, 150.0), np.full(HOPS, 1000.0)])
    assert cycles_of(pitch).tolist() == [8, 10, 12, MAX_CYCLES]
    assert cycles_of(np.full(HOPS, 20.0)).tolist() == [MIN_CYCLES]
    assert cycles_of(np.zeros(2 * HOPS)).shape == (2,)


def test_a_voice_moves_pitch_and_formants_and_keeps_the_level() -> None:
    plain = analysis(2, 100)
    changed = as_voice(plain, Voice(pitch=1.5, formants=1.2))
    np.testing.assert_allclose(changed.pitch, 150)
    np.testing.assert_allclose(changed.envelope.sum(1), plain.envelope.sum(1))
    peak = 24_000 / 1024 * np.argmax(changed.envelope[0])
    assert peak == pytest.approx(700 * 1.2, abs=30)


def test_breath_adds_noise() -> None:
    breathy = as_voice(analysis(1, 100), Voice(breath=0.5))
    assert breathy.aperiodicity.min() == pytest.approx(0.5)
