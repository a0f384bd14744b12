"""Resample a stream with little delay: FFmpeg's resampler (by PyAV), which holds at most 2 ms back.

soxr's streams hold back up to 60 ms at telephone rates, because their filters work on blocks.
"""

from __future__ import annotations

import av
import numpy as np

from gateway.audio.samples import Floats


class StreamResampler:
    """Converts one mono stream, piece by piece. The result does not depend on where the pieces end."""

    def __init__(self, input_rate: int, output_rate: int) -> None:
        self._resampler = av.AudioResampler(format="flt", layout="mono", rate=output_rate)
        self._input_rate = input_rate
        self._output_rate = output_rate
        self._received = 0
        self._returned = 0

    def resample(self, pcm: Floats) -> Floats:
        """Return the samples [U] float32 that are complete after `pcm` [T] float32; may be empty."""
        if not len(pcm):
            return pcm
        frame = av.AudioFrame.from_ndarray(pcm[None], format="flt", layout="mono")
        frame.sample_rate, frame.pts = self._input_rate, self._received
        self._received += len(pcm)
        return self._joined(frame)

    def finish(self) -> Floats:
        """Return the samples that are held back, so that the whole stream has its length. Call it once, at the end."""
        if not self._received:
            return np.empty(0, np.float32)
        left = round(self._received * self._output_rate / self._input_rate) - self._returned
        rest = self._joined(None)[:left]
        return np.pad(rest, (0, left - len(rest)))

    def _joined(self, frame: av.AudioFrame | None) -> Floats:
        pieces = [converted.to_ndarray()[0] for converted in self._resampler.resample(frame)]
        self._returned += sum(map(len, pieces))
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, np.float32), *pieces])
