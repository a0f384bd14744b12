"""Ogg/Opus as a chat client sends it: pages of 20 ms that libopus encodes and FFmpeg writes."""

from __future__ import annotations

from fractions import Fraction
from io import BytesIO

import av
import numpy as np
from numpy.typing import NDArray

from loadtest.speech import RATE


class OggOpusEncoder:
    """Encodes a mono stream at 24 kHz; the first pages, with the stream's headers, come with the first frame."""

    def __init__(self) -> None:
        self._file = BytesIO()
        options = {"page_duration": "20000", "flush_packets": "1"}
        self._container = av.open(self._file, "w", format="ogg", options=options)
        codec = {"application": "voip", "frame_duration": "20"}
        self._stream = self._container.add_stream("libopus", rate=RATE, layout="mono", options=codec)
        self._samples = 0

    def encode(self, pcm: NDArray[np.int16]) -> bytes:
        """The pages that are complete after `pcm` [samples]; may be none."""
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, self._samples, Fraction(1, RATE)
        self._samples += len(pcm)
        self._container.mux(self._stream.encode(frame))
        return self._pages()

    def finish(self) -> bytes:
        """The last pages."""
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._pages()

    def _pages(self) -> bytes:
        pages = self._file.getvalue()
        self._file.seek(0)
        self._file.truncate()
        return pages
