"""A recording to take a voice from: decoded as for a request, and, for a voice that is to stay, looked at closely."""

from __future__ import annotations

import io

import numpy as np
import soundfile

from gateway.audio.decode import decode
from gateway.audio.loudness import normalise
from gateway.engine.backend import Floats
from gateway.errors import AudioError

MIN_SECONDS, MAX_SECONDS = 3.0, 30.0

# Silence: what no 80 ms frame reaches in mean level. A voice needs some time above it.
AUDIBLE_DBFS = -60.0
MIN_AUDIBLE_SECONDS = 1.0
FRAME_SECONDS = 0.08

# Clipping: at least so many samples in a row that are this close to full scale (μ-law's largest is 0.98). Undistorted
# speech whose peaks touch full scale has next to none; amplified by 30 % more, about as many as may be.
CLIPPED_LEVEL = 0.98
CLIPPED_RUN = 3
MAX_CLIPPED_SHARE = 0.001

_BLOCK = 65_536


def recorded_voice(data: bytes, sample_rate: int, max_seconds: float, field: str) -> Floats:
    """The bytes of an audio file -> [T] float32 at `sample_rate`, as loud as the model knows voices. Takes time.

    Raises AudioError, naming `field`, for what cannot be a voice.
    """
    return normalise(decode(data, sample_rate, max_seconds, field), sample_rate, field)


def lasting_voice(data: bytes, sample_rate: int, field: str = "clip") -> Floats:
    """The same samples, of a clip that is good enough for a preset.

    Raises AudioError, which says what was measured, for one that is not 3 to 30 s long, silent, or clipped.
    """
    pcm = decode(data, sample_rate, MAX_SECONDS, field)
    seconds = round(len(pcm) / sample_rate, 2)
    if seconds < MIN_SECONDS:
        raise AudioError(f"expected {MIN_SECONDS:g} to {MAX_SECONDS:g} s of voice, got {seconds:g} s", field)
    if (audible := _audible_seconds(pcm, sample_rate)) < MIN_AUDIBLE_SECONDS:
        raise AudioError(
            f"expected a voice, got silence: {audible:.1f} s are louder than {AUDIBLE_DBFS:g} dBFS, "
            f"at least {MIN_AUDIBLE_SECONDS:g} s must be",
            field,
        )
    if (share := clipped_share(_channel(data))) > MAX_CLIPPED_SHARE:
        raise AudioError(
            f"expected an undistorted voice, got a clipped one: {100 * share:.2g} % of its samples lie in a row at "
            f"full scale, at most {100 * MAX_CLIPPED_SHARE:g} % may",
            field,
        )
    return recorded_voice(data, sample_rate, MAX_SECONDS, field)


def clipped_share(samples: Floats) -> float:
    """Of samples [T] as they were recorded, the share that lies in runs of at least three at full scale.

    A float file may go over full scale undistorted: there its own peak counts.
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
    """Channel 0 at the file's own rate: resampling would round off what clipping cut.

    So does lossy compression, which makes cut peaks swing over full scale.
    """
    with soundfile.SoundFile(io.BytesIO(data)) as sound:
        blocks = sound.blocks(_BLOCK, dtype="float32", always_2d=True)
        samples = np.concatenate([block[:, 0].copy() for block in blocks])
        return samples if sound.subtype in ("FLOAT", "DOUBLE") else np.clip(samples, -1, 1)
