"""Write WAV: mono PCM16, whole or as a stream."""

from __future__ import annotations

import struct

import numpy as np

from gateway.audio.samples import Floats

# Length in the header of a stream; players read to its end.
UNKNOWN_BYTES = 0xFFFFFFFF
HEADER_BYTES = 44


def header(sample_rate: int, samples: int | None) -> bytes:
    """Make the 44-byte header; `samples` is None for a stream of unknown length."""
    if samples is None:
        riff = data = UNKNOWN_BYTES
    else:
        data = samples * 2
        riff = data + HEADER_BYTES - 8
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        riff,
        b"WAVE",
        b"fmt ",
        16,
        1,
        1,
        sample_rate,
        sample_rate * 2,
        2,
        16,
        b"data",
        data,
    )


def pcm16(pcm: Floats) -> bytes:
    """Encode [T] float32 as little-endian int16: clipped to ±1, times 32767, truncated towards zero."""
    return (np.clip(pcm, -1.0, 1.0) * np.float32(32767)).astype("<i2").tobytes()


def wav(pcm: Floats, sample_rate: int) -> bytes:
    """Encode a whole file."""
    return header(sample_rate, len(pcm)) + pcm16(pcm)
