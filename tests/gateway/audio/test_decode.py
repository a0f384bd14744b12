"""Decoding: formats, resampling and rejected files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from gateway.audio.decode import decode
from gateway.errors import AudioError

RATE = 24_000
USER_WAV = Path(__file__).parents[2] / "golden" / "user.wav"


def tone(rate: int, seconds: float = 0.5, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


def file(samples: np.ndarray, rate: int = RATE, kind: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, subtype=subtype)
    return buffer.getvalue()


def test_pcm16_at_the_models_rate_is_unchanged():
    pcm = decode(USER_WAV.read_bytes(), RATE, 300)
    stored, _ = soundfile.read(USER_WAV, dtype="int16")
    assert pcm.dtype == np.float32
    assert np.array_equal(pcm, stored / np.float32(32768))


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 44_100, 48_000, 96_000, 192_000])
def test_other_rates_are_resampled_without_delay(rate: int):
    pcm = decode(file(tone(rate), rate, subtype="FLOAT"), RATE, 300)
    assert abs(len(pcm) - RATE // 2) <= 1
    inner = slice(RATE // 10, RATE * 4 // 10)
    assert np.abs(pcm[inner] - tone(RATE)[: len(pcm)][inner]).max() < 1e-3


@pytest.mark.parametrize(("kind", "subtype"), [("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)])
def test_compressed_files_are_read(kind: str, subtype: str | None):
    pcm = decode(file(tone(RATE, 1.0), kind=kind, subtype=subtype), RATE, 300)
    assert 0.3 < np.abs(pcm).max() < 0.7


def test_the_first_of_several_channels_is_used():
    stereo = np.stack([tone(RATE), np.zeros(RATE // 2, np.float32)], axis=1)
    assert np.array_equal(decode(file(stereo, subtype="FLOAT"), RATE, 300), tone(RATE))


def test_long_audio_is_the_same_whether_read_in_one_block_or_several():
    long = tone(16_000, 10.0)
    pcm = decode(file(long, 16_000, subtype="FLOAT"), RATE, 300)
    assert abs(len(pcm) - 10 * RATE) <= 1
    assert np.abs(pcm[1000:-1000] - tone(RATE, 10.0)[: len(pcm)][1000:-1000]).max() < 1e-3


@pytest.mark.parametrize("rate", [7_999, 192_001])
def test_rates_outside_8_to_192_khz_are_rejected(rate: int):
    with pytest.raises(AudioError, match=f"expected 8000 to 192000 samples per second, got {rate}"):
        decode(file(tone(rate), rate), RATE, 300)


def test_an_empty_file_is_rejected():
    with pytest.raises(AudioError, match="got no bytes"):
        decode(b"", RATE, 300)


def test_a_file_without_samples_is_rejected():
    with pytest.raises(AudioError, match="without samples"):
        decode(file(np.zeros(0, np.float32)), RATE, 300)


@pytest.mark.parametrize("data", [b"hello, this is no audio at all", b"RIFF\x00\x00\x00\x00WAVE", b"\x00" * 2000])
def test_other_data_is_rejected_in_one_line(data: bytes):
    with pytest.raises(AudioError, match="expected an audio file libsndfile reads") as refused:
        decode(data, RATE, 300)
    assert "\n" not in refused.value.message
    assert "0x" not in refused.value.message


def test_the_error_has_the_reason_of_libsndfile():
    with pytest.raises(AudioError, match=r"Ogg, MP3, …\): Format not recognised$"):
        decode(b"hello, this is no audio at all", RATE, 300)


def test_a_truncated_flac_is_rejected():
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 48_000).astype(np.float32)
    data = bytearray(file(noise, kind="FLAC"))
    data[len(data) // 2 :] = b"\xff" * (len(data) - len(data) // 2)
    with pytest.raises(AudioError):
        decode(bytes(data[: len(data) // 2 + 100]), RATE, 300)


def test_too_long_audio_is_rejected_before_it_is_read(monkeypatch: pytest.MonkeyPatch):
    def read(*_: object, **__: object) -> None:
        raise AssertionError("it was read")

    monkeypatch.setattr(soundfile.SoundFile, "read", read)
    with pytest.raises(AudioError, match="expected at most 2 s of audio, got more"):
        decode(file(tone(RATE, 2.01)), RATE, 2.0)


def test_a_header_with_too_short_a_length_does_not_bypass_the_limit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(soundfile.SoundFile, "frames", property(lambda self: 10))
    monkeypatch.setattr(soundfile.SoundFile, "seekable", lambda self: False)
    with pytest.raises(AudioError, match="expected at most 2 s"):
        decode(file(tone(RATE, 5.0)), RATE, 2.0)


def test_audio_of_exactly_the_limit_is_read():
    assert len(decode(file(tone(RATE, 2.0)), RATE, 2.0)) == 2 * RATE


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_samples_are_rejected(bad: float):
    samples = tone(RATE)
    samples[100] = bad
    with pytest.raises(AudioError, match="got NaN or infinity"):
        decode(file(samples, subtype="FLOAT"), RATE, 300)


def test_integers_stored_as_floats_are_rejected():
    with pytest.raises(AudioError, match="expected samples within ±1, got 16383"):
        decode(file(tone(RATE) * 32767, subtype="FLOAT"), RATE, 300)


def test_the_error_names_the_field():
    with pytest.raises(AudioError) as refused:
        decode(b"", RATE, 300, field="voice_audio")
    assert refused.value.field == "voice_audio"
