"""Opus packets through libopus, judged by FFmpeg's own decoder."""

from __future__ import annotations

import av
import numpy as np
import pytest

from gateway.audio.opus import MAX_PACKET_BYTES, OpusDecoder, OpusEncoder
from gateway.errors import AudioError

# Correlation of a tone of 300 Hz: 0.8 for a shift of a third of a millisecond, 0 for 0.8 ms.
ALIKE = 0.9


def sine(samples: int) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * 300 * np.arange(samples) / 24_000)).astype(np.float32)


@pytest.mark.parametrize("size", [60, 120, 240, 480, 960, 1440, 1920, 2880])
def test_packets_of_every_allowed_length_are_decoded(size: int) -> None:
    encoder, decoder = OpusEncoder(), OpusDecoder()
    frames = sine(size * 20).reshape(20, size)
    decoded = np.concatenate([decoder.decode(encoder.encode(frame)) for frame in frames])
    assert len(decoded) == frames.size
    delay = encoder.lookahead
    assert np.corrcoef(decoded[delay:], frames.reshape(-1)[: len(decoded) - delay])[0, 1] > ALIKE


def test_ffmpeg_decodes_the_encoders_packets() -> None:
    encoder = OpusEncoder()
    pcm = sine(1920 * 20)
    decoder = av.CodecContext.create("opus", "r")
    decoder.sample_rate = 48_000
    decoder.layout = "mono"
    decoded = np.concatenate(
        [
            frame.to_ndarray().reshape(-1)
            for part in pcm.reshape(20, 1920)
            for frame in decoder.decode(av.Packet(encoder.encode(part)))
        ]
    )
    assert len(decoded) == 2 * len(pcm)
    delay = encoder.lookahead
    assert np.corrcoef(decoded[2 * delay :: 2], pcm[: len(pcm) - delay])[0, 1] > ALIKE


def test_other_lengths_cannot_be_encoded() -> None:
    with pytest.raises(ValueError, match="1919 samples"):
        OpusEncoder().encode(np.zeros(1919, np.float32))


@pytest.mark.parametrize("packet", [b"", bytes(MAX_PACKET_BYTES + 1), b"\xff", b"\x03\xff\xff"])
def test_invalid_packets_are_rejected(packet: bytes) -> None:
    with pytest.raises(AudioError, match="expected an Opus packet"):
        OpusDecoder().decode(packet)


def test_a_decoder_continues_after_an_invalid_packet() -> None:
    encoder, decoder = OpusEncoder(), OpusDecoder()
    good = encoder.encode(sine(1920))
    with pytest.raises(AudioError):
        decoder.decode(b"\xff")
    assert len(decoder.decode(good)) == 1920


def test_later_packets_do_not_change_decoded_samples() -> None:
    encoder, decoder = OpusEncoder(), OpusDecoder()
    first = decoder.decode(encoder.encode(sine(1920)))
    before = first.copy()
    decoder.decode(encoder.encode(-sine(1920)))
    assert np.array_equal(first, before)
