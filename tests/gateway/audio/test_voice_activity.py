"""Where a user speaks."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import soxr
from numpy.typing import NDArray

from gateway.audio.voice_activity import Activity, VoiceActivity
from tests.clients.conftest import QUESTION

RATE = 24_000


def noise(seconds: float, decibels: float) -> NDArray[np.float32]:
    samples = np.random.default_rng(1).standard_normal(round(seconds * RATE))
    return (samples * 10 ** (decibels / 20)).astype(np.float32)


def found(pcm: NDArray[np.float32], piece: int = 480, silence_ms: int = 500) -> list[Activity]:
    activity = VoiceActivity(RATE, silence_ms)
    return [each for at in range(0, len(pcm), piece) for each in activity.feed(pcm[at : at + piece])]


@pytest.mark.parametrize("piece", [1, 100, 480, 1920, 100_000])
def test_speech_has_a_start_and_an_end_whatever_the_pieces(piece: int) -> None:
    pcm = np.concatenate([noise(1, -60), noise(1, -20), noise(0.3, -60), noise(1, -20), noise(1, -60)])
    assert found(pcm, piece) == [("started", 1000), ("stopped", 3800)]


def test_a_shorter_silence_divides_it() -> None:
    pcm = np.concatenate([noise(1, -20), noise(0.3, -60), noise(1, -20), noise(1, -60)])
    assert found(pcm, silence_ms=200) == [("started", 0), ("stopped", 1200), ("started", 1300), ("stopped", 2500)]


@pytest.mark.parametrize("pcm", [noise(3, -50), np.concatenate([noise(1, -60), noise(0.06, 0), noise(1, -60)])])
def test_a_rooms_noise_and_a_knock_are_no_speech(pcm: NDArray[np.float32]) -> None:
    assert found(pcm) == []


def test_a_recorded_question_is_speech() -> None:
    pcm, rate = soundfile.read(QUESTION, dtype="float32")
    pcm = np.concatenate([soxr.resample(pcm, rate, RATE), noise(1, -70)]).astype(np.float32)
    activities = found(pcm)
    assert [activity.kind for activity in activities] == ["started", "stopped"] * (len(activities) // 2)
    assert activities[0].at_ms < 1000
    assert activities[-1].at_ms > 4000
