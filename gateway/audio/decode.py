"""Decode audio files from memory to mono float32.

Channel 0 is used, as in the reference. Files are read in blocks, so that the time limit bounds the decoded size.
"""

from __future__ import annotations

import io
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from gateway.audio.samples import Floats
from gateway.errors import AudioError

MIN_RATE = 8_000
MAX_RATE = 192_000
MAX_CHANNELS = 16
# Full scale is 1. Float files may exceed it a little, but a level this high means integers stored as floats.
MAX_LEVEL = 16.0
_BLOCK = 65_536


def decode(data: bytes | BinaryIO, sample_rate: int, max_seconds: float, field: str = "audio") -> Floats:
    """Decode a file that libsndfile reads to [T] float32 at `sample_rate`. Blocks: call it in a thread.

    Raises AudioError, naming `field`, for empty, unreadable, too long, too slow or fast sampled, or non-finite audio.
    """
    if not data:
        raise AudioError("expected an audio file, got no bytes", field)
    try:
        with soundfile.SoundFile(io.BytesIO(data) if isinstance(data, bytes) else data) as sound:
            _check(sound, max_seconds, field)
            pcm = _read(sound, sample_rate, max_seconds, field)
    except soundfile.LibsndfileError as error:
        reason = error.error_string.rstrip(".")
        raise AudioError(f"expected an audio file libsndfile reads (WAV, FLAC, Ogg, MP3, …): {reason}", field) from None
    if not pcm.size:
        raise AudioError("expected some audio, got a file without samples", field)
    if not np.isfinite(pcm).all():
        raise AudioError("expected finite samples, got NaN or infinity", field)
    if (level := float(np.abs(pcm).max())) > MAX_LEVEL:
        raise AudioError(f"expected samples within ±1, got {level:g}", field)
    return pcm


def _check(sound: soundfile.SoundFile, max_seconds: float, field: str) -> None:
    rate: int = sound.samplerate
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError(f"expected {MIN_RATE} to {MAX_RATE} samples per second, got {rate}", field)
    if sound.channels > MAX_CHANNELS:
        raise AudioError(f"expected at most {MAX_CHANNELS} channels, got {sound.channels}", field)
    if sound.frames > max_seconds * rate:
        raise _too_long(max_seconds, field)


def _read(sound: soundfile.SoundFile, sample_rate: int, max_seconds: float, field: str) -> Floats:
    rate: int = sound.samplerate
    stream = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32", quality="HQ") if rate != sample_rate else None
    left = int(max_seconds * rate)
    pieces: list[Floats] = []
    last = False
    while not last:
        block = sound.read(_BLOCK, dtype="float32", always_2d=True)[:, 0]
        last = len(block) < _BLOCK
        left -= len(block)
        if left < 0:  # the header may state less
            raise _too_long(max_seconds, field)
        pieces.append(np.ascontiguousarray(block) if stream is None else stream.resample_chunk(block, last=last))
    return np.concatenate(pieces)


def _too_long(max_seconds: float, field: str) -> AudioError:
    return AudioError(f"expected at most {max_seconds:g} s of audio, got more", field)
