"""The codec of one caller, in both directions."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.audio.duplex import DuplexCodec, Encoding
from gateway.audio.g711 import SAMPLE_RATE
from gateway.errors import AudioError

FRAME = 1920
FORMATS: list[tuple[Encoding, int]] = [
    ("pcm_s16le", 24_000), ("pcm_s16le", 16_000), ("ulaw", SAMPLE_RATE), ("alaw", SAMPLE_RATE)
]  # fmt: skip
TIME = np.arange(50 * FRAME) / 24_000
TONE = (0.5 * np.sin(2 * np.pi * 440 * TIME)).astype(np.float32)


@pytest.mark.parametrize(("encoding", "rate"), FORMATS)
def test_what_is_encoded_in_frames_decodes_to_the_same_sound(encoding: Encoding, rate: int) -> None:
    codec = DuplexCodec(encoding, rate, 24_000)
    encoded = b"".join([*(codec.encode(frame) for frame in TONE.reshape(-1, FRAME)), codec.finish_output()])
    assert len(encoded) == len(TONE) * rate // 24_000 * (2 if encoding == "pcm_s16le" else 1)
    pieces = [codec.decode(encoded[at : at + 320]) for at in range(0, len(encoded), 320)]
    decoded = np.concatenate([*pieces, codec.finish_input()])
    assert len(decoded) == len(TONE)
    middle = slice(FRAME, -FRAME)
    error = np.sqrt(np.mean(np.square(decoded[middle] - TONE[middle])))
    assert error < (0.01 if encoding in ("ulaw", "alaw") else 0.001)


@pytest.mark.parametrize(("encoding", "rate"), FORMATS)
def test_zeros_after_speech_are_exact_zeros(encoding: Encoding, rate: int) -> None:
    codec = DuplexCodec(encoding, rate, 24_000)
    for frame in TONE.reshape(-1, FRAME):
        codec.encode(frame)
    silence = [codec.encode(np.zeros(FRAME, np.float32)) for _ in range(12)]
    idle = {"ulaw": b"\xff", "alaw": b"\xd5", "pcm_s16le": b"\0"}[encoding]
    # The resampler's filter rings for less than a frame.
    assert set(b"".join(silence[2:])) == set(idle)


def test_a_partial_sample_is_rejected() -> None:
    with pytest.raises(AudioError, match="whole"):
        DuplexCodec("pcm_s16le", 24_000, 24_000).decode(b"123")


@pytest.mark.parametrize(("encoding", "rate"), FORMATS)
def test_each_direction_holds_at_most_2_ms_back(encoding: Encoding, rate: int) -> None:
    codec = DuplexCodec(encoding, rate, 24_000)
    width = 2 if encoding == "pcm_s16le" else 1
    sent = decoded = encoded = 0.0
    for _ in range(20):
        sent += 0.02
        decoded += len(codec.decode(bytes(width * rate // 50))) / 24_000
        encoded += len(codec.encode(np.zeros(480, np.float32))) / width / rate
        assert 0 <= round(sent - decoded, 6) <= 0.002
        assert 0 <= round(sent - encoded, 6) <= 0.002


def test_the_result_does_not_depend_on_where_pieces_end() -> None:
    data = DuplexCodec("ulaw", SAMPLE_RATE, 24_000).encode(TONE)
    whole, pieces = DuplexCodec("ulaw", SAMPLE_RATE, 24_000), DuplexCodec("ulaw", SAMPLE_RATE, 24_000)
    cut = np.concatenate([pieces.decode(data[at : at + 7]) for at in range(0, len(data), 7)])
    assert np.array_equal(cut, whole.decode(data))
