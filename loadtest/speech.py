"""The audio every user sends: one recording, encoded once and repeated."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import soundfile
import soxr

from gateway.cli.console import CommandError

RATE = 24_000
FRAME_SIZE = 1_920


@dataclass(frozen=True)
class Speech:
    """frames: 80 ms each, mono s16le at 24 kHz. recording: the content of the file."""

    frames: list[bytes]
    recording: bytes

    @classmethod
    def load(cls, path: Path) -> Speech:
        """Read any file libsndfile reads; pad the last frame with silence. Raises CommandError."""
        try:
            recording = path.read_bytes()
            pcm, rate = soundfile.read(BytesIO(recording), dtype="float32", always_2d=True)
        except OSError as error:
            raise CommandError(f"{path}: cannot be read: {error.strerror}") from None
        except soundfile.SoundFileError as error:
            raise CommandError(f"{path}: expected a recording that libsndfile reads: {error}") from None
        if not len(pcm):
            raise CommandError(f"{path}: expected a recording, found no sample in it")
        mono = soxr.resample(pcm[:, 0], rate, RATE)
        mono = np.pad(mono, (0, -len(mono) % FRAME_SIZE))
        samples = (np.clip(mono, -1, 1) * 32767).astype("<i2")
        frames = [samples[i : i + FRAME_SIZE].tobytes() for i in range(0, len(samples), FRAME_SIZE)]
        return cls(frames, recording)

    def frame(self, u: int) -> bytes:
        """User frame u; the recording repeats."""
        return self.frames[u % len(self.frames)]

    def respond_body(self, seed: int) -> bytes:
        """JSON body for `POST /v1/respond`: one frame out per frame in, streamed."""
        audio = base64.b64encode(self.recording).decode("ascii")
        return json.dumps({"audio": audio, "max_steps": len(self.frames), "stream": True, "seed": seed}).encode()
