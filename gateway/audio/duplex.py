"""The audio codec of one caller: bytes of the client's format and rate to and from samples at the model's rate."""

from __future__ import annotations

from typing import Literal

from gateway.audio import g711
from gateway.audio.resample import StreamResampler
from gateway.audio.samples import Floats
from gateway.audio.stream import PcmReader, check_rate, to_bytes

Encoding = Literal["pcm_s16le", "ulaw", "alaw"]


class DuplexCodec:
    """Decodes what a client sends and encodes what it receives, message by message, in one format.

    At rates other than the model's, each direction holds at most 2 ms back until more audio arrives.
    """

    def __init__(self, encoding: Encoding, sample_rate: int, model_rate: int) -> None:
        """Raises AudioError if the rate is not within 8 to 192 kHz."""
        self._law: g711.Law | None = None if encoding == "pcm_s16le" else encoding
        check_rate(sample_rate)
        self._reader = PcmReader("pcm_s16le", model_rate, model_rate)
        resamples = sample_rate != model_rate
        self._input = StreamResampler(sample_rate, model_rate) if resamples else None
        self._output = StreamResampler(model_rate, sample_rate) if resamples else None
        self.piece_bytes = 32_768 if self._law is None else 16_384
        """Longer messages are decoded in pieces of this size, so that none of them occupies the event loop for long."""

    def decode(self, data: bytes) -> Floats:
        """Decode one message of whole samples to [T] float32. Raises AudioError for a partial sample."""
        pcm = self._reader.read(data if self._law is None else g711.decode(data, self._law))
        return pcm if self._input is None else self._input.resample(pcm)

    def finish_input(self) -> Floats:
        """Return the samples that are held back. Nothing may be decoded afterwards."""
        return self._reader.finish() if self._input is None else self._input.finish()

    def encode(self, pcm: Floats) -> bytes:
        """Encode samples [T] float32; the result may be empty."""
        return self._bytes(pcm if self._output is None else self._output.resample(pcm))

    def finish_output(self) -> bytes:
        """Return the bytes that are held back. Nothing may be encoded afterwards."""
        return b"" if self._output is None else self._bytes(self._output.finish())

    def _bytes(self, pcm: Floats) -> bytes:
        pcm16 = to_bytes(pcm, "pcm_s16le")
        return pcm16 if self._law is None else g711.encode(pcm16, self._law)
