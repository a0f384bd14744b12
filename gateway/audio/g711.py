"""G.711 μ-law and A-law, the codecs of telephones: one byte per sample at 8 kHz.

FFmpeg (by PyAV) encodes and decodes every possible sample once; the results are the tables of both laws.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import av
import numpy as np
import numpy.typing as npt

Law = Literal["ulaw", "alaw"]

SAMPLE_RATE = 8_000

_CODECS = {"ulaw": "pcm_mulaw", "alaw": "pcm_alaw"}
_INT16 = 2**16


def decode(data: bytes, law: Law) -> bytes:
    """Decode bytes to PCM, 16-bit little-endian."""
    samples: bytes = _decoding(law)[np.frombuffer(data, np.uint8)].tobytes()
    return samples


def encode(pcm16: bytes, law: Law) -> bytes:
    """Encode PCM, 16-bit little-endian."""
    encoded: bytes = _encoding(law)[np.frombuffer(pcm16, "<u2")].tobytes()
    return encoded


@cache
def _decoding(law: Law) -> npt.NDArray[np.int16]:
    """Table [256]: the sample of each byte."""
    (frame,) = _codec(law, "r").decode(av.Packet(bytes(range(256))))
    table: npt.NDArray[np.int16] = frame.to_ndarray()[0].astype("<i2")
    return table


@cache
def _encoding(law: Law) -> npt.NDArray[np.uint8]:
    """Table [65536]: the byte of each sample, whose bits are the index."""
    codec = _codec(law, "w")
    samples = np.arange(_INT16, dtype=np.uint16).view(np.int16)
    frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
    frame.sample_rate = SAMPLE_RATE
    packets = [*codec.encode(frame), *codec.encode(None)]
    return np.frombuffer(b"".join(map(bytes, packets)), np.uint8)


def _codec(law: Law, mode: Literal["r", "w"]) -> Any:
    codec: Any = av.CodecContext.create(_CODECS[law], mode)
    codec.sample_rate, codec.layout, codec.format = SAMPLE_RATE, "mono", "s16"
    return codec
