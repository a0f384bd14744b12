"""A caller's PCM as it comes, whatever its format and rate, to what the models hear; and the agent's PCM back."""

from __future__ import annotations

from typing import Literal, assert_never

import numpy as np
import soxr

from gateway.audio.decode import MAX_LEVEL, MAX_RATE, MIN_RATE
from gateway.audio.wav import pcm16
from gateway.engine.backend import Floats
from gateway.errors import AudioError

PcmFormat = Literal["pcm_s16le", "pcm_f32le"]
"""Mono, little-endian: 16-bit integers, or floats of full scale 1."""

SAMPLE_BYTES: dict[PcmFormat, int] = {"pcm_s16le": 2, "pcm_f32le": 4}


class PcmReader:
    """One caller's bytes, message by message, to [T] float32 at the model's rate.

    A resampler keeps back some milliseconds until more comes; at equal rates samples pass through unchanged.
    """

    def __init__(self, audio_format: PcmFormat, sample_rate: int, model_rate: int = 24_000) -> None:
        """Raises AudioError for a rate outside 8 to 192 kHz."""
        if not MIN_RATE <= sample_rate <= MAX_RATE:
            raise AudioError(f"expected {MIN_RATE} to {MAX_RATE} samples per second, got {sample_rate}")
        self._format: PcmFormat = audio_format
        self._resampler = (
            None
            if sample_rate == model_rate
            else soxr.ResampleStream(sample_rate, model_rate, 1, dtype="float32", quality="HQ")
        )

    def read(self, data: bytes) -> Floats:
        """Whole samples -> what they add, [T] float32. Raises AudioError for half a sample, NaN or a level over 16."""
        size = SAMPLE_BYTES[self._format]
        if len(data) % size:
            raise AudioError(f"expected whole {self._format} samples of {size} bytes, got {len(data)} bytes")
        pcm: Floats
        if self._format == "pcm_s16le":
            pcm = np.frombuffer(data, "<i2") * np.float32(1 / 32768)
        elif self._format == "pcm_f32le":
            pcm = np.frombuffer(data, "<f4").astype(np.float32)
            # NaN is neither below nor above anything.
            if pcm.size and not (pcm.min() >= -MAX_LEVEL and pcm.max() <= MAX_LEVEL):
                raise AudioError("expected samples within ±1, got NaN, infinity or a level far above it")
        else:
            assert_never(self._format)
        return pcm if self._resampler is None else self._resampler.resample_chunk(pcm)

    def finish(self) -> Floats:
        """What the resampler kept back; nothing may be read after that."""
        nothing = np.empty(0, np.float32)
        return nothing if self._resampler is None else self._resampler.resample_chunk(nothing, last=True)


def to_bytes(pcm: Floats, audio_format: PcmFormat) -> bytes:
    """[T] float32 -> its bytes; integers clipped to ±1 and cut towards zero, as in the WAV answers."""
    return pcm16(pcm) if audio_format == "pcm_s16le" else pcm.astype("<f4", copy=False).tobytes()
