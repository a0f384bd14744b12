"""PCM streams: a client's bytes to samples at the model's rate, and the agent's samples to bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import soxr

from gateway.audio.decode import MAX_LEVEL, MAX_RATE, MIN_RATE
from gateway.audio.samples import Floats
from gateway.errors import AudioError

PcmFormat = Literal["pcm_s16le", "pcm_f32le"]
"""Mono, little-endian: 16-bit integers, or floats of full scale 1."""

PCM_PIECE_BYTES = 65_536
"""Longer messages are decoded in pieces of this size, so that none of them occupies the event loop for long."""

FROM_INT16 = np.float32(1 / 32768)
"""Factor from 16-bit integers to floats of full scale 1."""


@dataclass(frozen=True, slots=True)
class PcmEncoding:
    """How float32 samples become bytes: `clip(pcm * scale, -limit, limit)`, truncated towards zero to `dtype`."""

    dtype: np.dtype[np.generic]
    scale: np.float32
    limit: np.float32


PCM_ENCODINGS: dict[PcmFormat, PcmEncoding] = {
    "pcm_s16le": PcmEncoding(np.dtype("<i2"), np.float32(32767), np.float32(32767)),
    "pcm_f32le": PcmEncoding(np.dtype("<f4"), np.float32(1), np.float32(np.inf)),
}


def check_rate(sample_rate: int) -> None:
    """Raise AudioError if the rate of a client's PCM is not within 8 to 192 kHz."""
    if not MIN_RATE <= sample_rate <= MAX_RATE:
        raise AudioError(f"expected {MIN_RATE} to {MAX_RATE} samples per second, got {sample_rate}")


class PcmReader:
    """Decodes one client's PCM, message by message, to [T] float32 at the model's rate.

    A resampler holds some milliseconds back until more audio arrives. At equal rates samples pass through unchanged.
    """

    def __init__(self, audio_format: PcmFormat, sample_rate: int, model_rate: int = 24_000) -> None:
        """Raises what `check_rate` raises."""
        check_rate(sample_rate)
        self._format: PcmFormat = audio_format
        self._dtype = PCM_ENCODINGS[audio_format].dtype
        self._resampler = (
            None
            if sample_rate == model_rate
            else soxr.ResampleStream(sample_rate, model_rate, 1, dtype="float32", quality="HQ")
        )

    def read(self, data: bytes) -> Floats:
        """Decode one message of whole samples. Raises AudioError for a partial sample, NaN or a level above 16."""
        size = self._dtype.itemsize
        if len(data) % size:
            raise AudioError(f"expected whole {self._format} samples of {size} bytes, got {len(data)} bytes")
        pcm: Floats
        if size == 2:
            pcm = np.frombuffer(data, self._dtype) * FROM_INT16
        else:
            pcm = np.frombuffer(data, self._dtype).astype(np.float32)
            # Written so that NaN, which compares false, is rejected too.
            if pcm.size and not (pcm.min() >= -MAX_LEVEL and pcm.max() <= MAX_LEVEL):
                raise AudioError("expected samples within ±1, got NaN, infinity or a level far above it")
        return pcm if self._resampler is None else self._resampler.resample_chunk(pcm)

    def finish(self) -> Floats:
        """Return the samples the resampler still holds. Nothing may be read afterwards."""
        nothing = np.empty(0, np.float32)
        return nothing if self._resampler is None else self._resampler.resample_chunk(nothing, last=True)


def to_bytes(pcm: Floats, audio_format: PcmFormat) -> bytes:
    """Encode samples [T] float32. Integers are clipped to ±1 and truncated towards zero, as in WAV responses."""
    encoding = PCM_ENCODINGS[audio_format]
    scaled = np.minimum(np.maximum(pcm * encoding.scale, -encoding.limit), encoding.limit)
    data: bytes = scaled.astype(encoding.dtype).tobytes()
    return data
