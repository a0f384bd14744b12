"""Written WAV files, read by other libraries."""

from __future__ import annotations

import io

import numpy as np
import soundfile

from gateway.audio.wav import header, pcm16, wav

NOISE = np.random.default_rng(3).uniform(-1, 1, 4000).astype(np.float32)


def test_a_file_reads_back_within_a_ten_thousandth():
    pcm, rate = soundfile.read(io.BytesIO(wav(NOISE, 24_000)), dtype="float32")
    assert rate == 24_000
    assert np.abs(pcm - NOISE).max() < 1e-4


def test_samples_are_truncated_towards_zero_and_clipped():
    samples = np.array([0.0, 1.0, -1.0, 2.0, -2.0, 1.9 / 32767, -1.9 / 32767], np.float32)
    assert np.frombuffer(pcm16(samples), "<i2").tolist() == [0, 32767, -32767, 32767, -32767, 1, -1]


def test_a_header_of_known_length_is_that_of_the_whole_file():
    assert wav(NOISE, 24_000) == header(24_000, len(NOISE)) + pcm16(NOISE)
    info = soundfile.info(io.BytesIO(wav(NOISE, 24_000)))
    assert (info.frames, info.channels, info.subtype) == (4000, 1, "PCM_16")


def test_a_stream_of_unknown_length_is_read_to_its_end():
    pcm, _ = soundfile.read(io.BytesIO(header(24_000, None) + pcm16(NOISE)), dtype="float32")
    assert len(pcm) == 4000
