"""Replace the agent's idle noise by exact zeros.

Clients decide by loudness whether the agent speaks. LiveKit's gate opens above -54.9 dBFS and Pipecat's at a peak of
20/32768, both below the noise that a decoder may produce in silence.
"""

from __future__ import annotations

import numpy as np

from gateway.audio.samples import Floats

SILENT_RMS = 10 ** (-50 / 20)
"""A frame without text is silent if its level is below -50 dB of full scale."""

# The beginning of a word may fill only the end of a frame: a block of 10 ms this loud makes the whole frame audible.
_ONSET_RMS = 2 * SILENT_RMS
_BLOCKS_PER_SECOND = 100
# Silent frames of 80 ms that pass before zeros begin, so that a quiet end of a word is not cut.
_HOLD_FRAMES = 3


class Squelch:
    """Silences one agent's frames while the agent does not speak. A conversation begins in silence."""

    def __init__(self, sample_rate: int) -> None:
        self._block = sample_rate // _BLOCKS_PER_SECOND
        self.quiet_frames = _HOLD_FRAMES
        """Frames since the last one with text or sound; 0 while the agent speaks."""

    def apply(self, pcm: Floats, text: str) -> Floats:
        """Return the next frame [T] float32 as it is, or zeros; see `passes`."""
        return pcm if self.passes(pcm, text) else np.zeros_like(pcm)

    def passes(self, pcm: Floats, text: str) -> bool:
        """Return whether the next frame [T] float32 is to be heard. `text`: of the frame; it opens the squelch at once.

        T: a multiple of 10 ms.
        """
        self.quiet_frames = 0 if text or self._audible(pcm) else self.quiet_frames + 1
        return self.quiet_frames <= _HOLD_FRAMES

    def _audible(self, pcm: Floats) -> bool:
        power = np.square(pcm.reshape(-1, self._block)).mean(axis=1)
        return bool(power.mean() >= SILENT_RMS**2 or power.max() >= _ONSET_RMS**2)
