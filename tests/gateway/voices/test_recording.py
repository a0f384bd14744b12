"""Requirements for recordings of voices. Accepted ones are decoded like the recordings of requests."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import soundfile

from gateway.errors import AudioError
from gateway.voices.recording import clipped_share, preset_recording, recorded_voice
from tests.gateway.cli.conftest import QUESTION

RATE = 24_000


def file(pcm: Any, rate: int = RATE, **how: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.asarray(pcm), rate, **{"format": "WAV", "subtype": "PCM_16", **how})
    return buffer.getvalue()


def noise(seconds: float, rate: int = RATE, level: float = 0.05) -> np.ndarray:
    return np.random.default_rng(3).normal(0, level, round(seconds * rate))


def spoken() -> tuple[np.ndarray, int]:
    pcm, rate = soundfile.read(QUESTION)
    return pcm, rate


def test_a_voice_recording_is_decoded_like_a_request():
    data = QUESTION.read_bytes()
    assert np.array_equal(preset_recording(data, RATE), recorded_voice(data, RATE, 30, "voice_audio"))


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("seconds", [3, 30])
def test_three_to_thirty_seconds_are_accepted(seconds: int, rate: int):
    pcm = preset_recording(file(noise(seconds, rate), rate), RATE)
    assert len(pcm) == pytest.approx(seconds * RATE, abs=1)


@pytest.mark.parametrize(("seconds", "error_text"), [(2.98, "got 2.98 s"), (0.1, "got 0.1 s"), (30.01, "at most 30 s")])
def test_shorter_and_longer_recordings_are_rejected(seconds: float, error_text: str):
    with pytest.raises(AudioError, match=error_text):
        preset_recording(file(noise(seconds)), RATE)


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_silence_is_rejected(subtype: str):
    for level in (0, 0.0003):
        with pytest.raises(AudioError, match=r"got silence: 0\.0 s are louder than -60 dBFS, at least 1 s are needed"):
            preset_recording(file(noise(5, level=level), subtype=subtype), RATE)


def test_too_little_speech_is_rejected():
    pcm = np.zeros(10 * RATE)
    pcm[RATE : RATE + RATE // 2] = noise(0.5)
    with pytest.raises(AudioError, match=r"got silence: 0\.[56] s are louder"):
        preset_recording(file(pcm), RATE)
    pcm[4 * RATE : 6 * RATE] = noise(2)
    assert len(preset_recording(file(pcm), RATE)) == 10 * RATE


def test_quiet_speech_is_accepted():
    pcm, rate = spoken()
    assert len(preset_recording(file(pcm * 0.02 / np.abs(pcm).max(), rate), RATE))


def test_speech_at_full_scale_is_not_clipped():
    pcm, rate = spoken()
    assert clipped_share(pcm / np.abs(pcm).max()) < 0.0002
    preset_recording(file(pcm / np.abs(pcm).max(), rate), RATE)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"format": "FLAC"},
        {"format": "OGG", "subtype": "VORBIS"},
        {"format": "MP3", "subtype": "MPEG_LAYER_III"},
        {"subtype": "ULAW"},
        {"subtype": "PCM_U8"},
        {"subtype": "FLOAT"},
        {"subtype": "PCM_24"},
    ],
)
def test_speech_beyond_full_scale_is_clipped(how: dict[str, str]):
    pcm, rate = spoken()
    with pytest.raises(AudioError, match=r"got a clipped one: [0-9.]+ % of the samples are in runs at full scale"):
        preset_recording(file(np.clip(pcm * 4 / np.abs(pcm).max(), -1, 1), rate, **how), RATE)


def test_a_float_file_over_full_scale_is_loud_but_not_clipped():
    pcm, rate = spoken()
    preset_recording(file(pcm * 3 / np.abs(pcm).max(), rate, subtype="FLOAT"), RATE)


def test_the_clipped_share_counts_runs_of_three_and_more():
    samples = np.zeros(1000, np.float32)
    samples[10:12] = 1
    assert clipped_share(samples) == 0
    samples[20:23] = [1, 0.995, 1]
    samples[-5:] = -1
    assert clipped_share(samples) == 8 / 1000


def test_an_unused_channel_may_be_clipped():
    good, bad = noise(4), np.clip(noise(4, level=2), -1, 1)
    preset_recording(file(np.stack([good, bad], axis=1)), RATE)
    with pytest.raises(AudioError, match="clipped"):
        preset_recording(file(np.stack([bad, good], axis=1)), RATE)


def test_other_data_is_rejected_like_in_requests():
    with pytest.raises(AudioError, match="expected an audio file libsndfile reads"):
        preset_recording(b"RIFF but nothing else", RATE)
