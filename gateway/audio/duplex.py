"""The audio codec of one caller: bytes of the client's format and rate to and from samples at the model's rate."""

from __future__ import annotations

from typing import Literal

import numpy as np
import soxr

from gateway.audio import g711
from gateway.audio.samples import Floats
from gateway.audio.stream import PcmReader, to_bytes

Encoding = Literal["pcm_s16le", "ulaw", "alaw"]


class DuplexCodec:
    """Decodes what a client sends and encodes what it receives, message by message, in one format.

    At rates other than the model's, each direction holds some milliseconds back until more audio arrives.
    """

    def __init__(self, encoding: Encoding, sample_rate: int, model_rate: int) -> None:
        """Raises AudioError if the rate is not within 8 to 192 kHz."""
        self._law: g711.Law | None = None if encoding == "pcm_s16le" else encoding
        self._reader = PcmReader("pcm_s16le", sample_rate, model_rate)
        self._resampler = (
            None
            if sample_rate == model_rate
            else soxr.ResampleStream(model_rate, sample_rate, 1, dtype="float32", quality="HQ")
        )
        self.piece_bytes = 32_768 if self._law is None else 16_384
        """Longer messages are decoded in pieces of this size, so that none of them occupies the event loop for long."""

    def decode(self, data: bytes) -> Floats:
        """Decode one message of whole samples to [T] float32. Raises AudioError for a partial sample."""
        return self._reader.read(data if self._law is None else g711.decode(data, self._law))

    def finish_input(self) -> Floats:
        """Return the samples that are held back. Nothing may be decoded afterwards."""
        return self._reader.finish()

    def encode(self, pcm: Floats) -> bytes:
        """Encode samples [T] float32; the result may be empty."""
        return self._bytes(pcm if self._resampler is None else self._resampler.resample_chunk(pcm))

    def finish_output(self) -> bytes:
        """Return the bytes that are held back. Nothing may be encoded afterwards."""
        if self._resampler is None:
            return b""
        return self._bytes(self._resampler.resample_chunk(np.empty(0, np.float32), last=True))

    def _bytes(self, pcm: Floats) -> bytes:
        pcm16 = to_bytes(pcm, "pcm_s16le")
        return pcm16 if self._law is None else g711.encode(pcm16, self._law)
