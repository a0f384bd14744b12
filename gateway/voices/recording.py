"""Decode voice recordings. Recordings for a preset are also checked for length, silence and clipping."""

from __future__ import annotations

import io
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile

from gateway.audio.decode import decode
from gateway.audio.loudness import normalise
from gateway.errors import AudioError

Floats = npt.NDArray[np.float32]

MIN_SECONDS, MAX_SECONDS = 3.0, 30.0

# Threshold on the RMS level of an 80 ms frame, and the least total length of frames above it.
AUDIBLE_DBFS = -60.0
MIN_AUDIBLE_SECONDS = 1.0
FRAME_SECONDS = 0.08

# Clipping is counted as runs of at least CLIPPED_RUN samples at CLIPPED_LEVEL of full scale (the largest μ-law sample
# is 0.98). Undistorted speech that peaks at full scale has almost none; amplified by 30 % it reaches the limit.
CLIPPED_LEVEL = 0.98
CLIPPED_RUN = 3
MAX_CLIPPED_SHARE = 0.001

_BLOCK = 65_536


def recorded_voice(data: bytes | BinaryIO, sample_rate: int, max_seconds: float, field: str) -> Floats:
    """Decode an audio file to [T] float32 at `sample_rate`, normalised to the loudness of the model's voices.

    CPU-bound; run it in a thread. Raises AudioError for `field` if the file is not usable as a voice.
    """
    return normalise(decode(data, sample_rate, max_seconds, field), sample_rate, field)


def preset_recording(data: bytes, sample_rate: int, field: str = "recording") -> Floats:
    """As `recorded_voice`, for a recording that becomes a preset.

    Raises AudioError with the measured value if the recording is not 3 to 30 s long, is silent, or is clipped.
    """
    pcm = decode(data, sample_rate, MAX_SECONDS, field)
    seconds = round(len(pcm) / sample_rate, 2)
    if seconds < MIN_SECONDS:
        raise AudioError(f"expected {MIN_SECONDS:g} to {MAX_SECONDS:g} s of voice, got {seconds:g} s", field)
    if (audible := _audible_seconds(pcm, sample_rate)) < MIN_AUDIBLE_SECONDS:
        raise AudioError(
            f"expected a voice, got silence: {audible:.1f} s are louder than {AUDIBLE_DBFS:g} dBFS, "
            f"at least {MIN_AUDIBLE_SECONDS:g} s are needed",
            field,
        )
    if (share := clipped_share(_channel(data))) > MAX_CLIPPED_SHARE:
        raise AudioError(
            f"expected an undistorted voice, got a clipped one: {100 * share:.2g} % of the samples are in runs at "
            f"full scale, the limit is {100 * MAX_CLIPPED_SHARE:g} %",
            field,
        )
    return recorded_voice(data, sample_rate, MAX_SECONDS, field)


def clipped_share(samples: Floats) -> float:
    """Return the share of samples [T], before resampling, in runs of at least three at full scale.

    A float file can exceed 1.0 without distortion; its peak is then taken as full scale.
    """
    full = max(1.0, float(np.abs(samples).max()))
    loud = np.abs(samples) >= CLIPPED_LEVEL * full
    edges = np.flatnonzero(np.diff(loud.astype(np.int8), prepend=0, append=0))
    lengths = edges[1::2] - edges[::2]
    return int(lengths[lengths >= CLIPPED_RUN].sum()) / len(samples)


def _audible_seconds(pcm: Floats, sample_rate: int) -> float:
    frame = round(FRAME_SECONDS * sample_rate)
    whole = pcm[: len(pcm) // frame * frame].astype(np.float64).reshape(-1, frame)
    level = np.sqrt((whole**2).mean(axis=1))
    return float((level >= 10 ** (AUDIBLE_DBFS / 20)).sum()) * FRAME_SECONDS


def _channel(data: bytes) -> Floats:
    """Decode channel 0 at the file's own rate, clamped to [-1, 1] unless the file holds floats.

    Resampling would smooth clipped peaks. Lossy codecs let clipped peaks overshoot full scale, hence the clamp.
    """
    with soundfile.SoundFile(io.BytesIO(data)) as sound:
        blocks = sound.blocks(_BLOCK, dtype="float32", always_2d=True)
        samples = np.concatenate([block[:, 0].copy() for block in blocks])
        return samples if sound.subtype in ("FLOAT", "DOUBLE") else np.clip(samples, -1, 1)
