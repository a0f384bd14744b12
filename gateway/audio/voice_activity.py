"""Find where a user speaks, by the level of the audio."""

from __future__ import annotations

from collections import deque
from typing import Literal, NamedTuple

import numpy as np

from gateway.audio.samples import Floats

_BLOCK_MS = 20
_LOUD_RMS = 10 ** (-40 / 20)
"""A block of 20 ms is loud from -40 dB of full scale on: above the noise of a room, below a voice at a microphone."""

# Speech is this many loud blocks among the latest 200 ms, which a click or a knock is not.
_LOUD_BLOCKS = 5
_RECENT_BLOCKS = 10


class Activity(NamedTuple):
    """Speech begins or ends. `at_ms`: of the audio's timeline. An end is found when the silence has lasted."""

    kind: Literal["started", "stopped"]
    at_ms: int


class VoiceActivity:
    """Follows one user's audio. `silence_ms`: of silence that ends speech."""

    def __init__(self, sample_rate: int, silence_ms: int) -> None:
        self._block = sample_rate * _BLOCK_MS // 1000
        self._silent_blocks = max(1, silence_ms // _BLOCK_MS)
        self._rest = np.empty(0, np.float32)
        self._blocks = 0
        self._recent: deque[bool] = deque(maxlen=_RECENT_BLOCKS)
        self._silent = 0
        self.speaking = False

    def feed(self, pcm: Floats) -> list[Activity]:
        """Return what begins and ends in the next samples [T] float32."""
        pcm = np.concatenate([self._rest, pcm])
        end = len(pcm) - len(pcm) % self._block
        self._rest = pcm[end:]
        power = np.square(pcm[:end].reshape(-1, self._block)).mean(axis=1)
        found = [self._next(loud) for loud in (power >= _LOUD_RMS**2).tolist()]
        return [activity for activity in found if activity is not None]

    def _next(self, loud: bool) -> Activity | None:
        self._blocks += 1
        self._recent.append(loud)
        self._silent = 0 if loud else self._silent + 1
        if self.speaking and self._silent >= self._silent_blocks:
            self.speaking = False
            self._recent.clear()
            return Activity("stopped", self._blocks * _BLOCK_MS)
        if not self.speaking and sum(self._recent) >= _LOUD_BLOCKS:
            self.speaking = True
            first = len(self._recent) - self._recent.index(True)
            return Activity("started", (self._blocks - first) * _BLOCK_MS)
        return None
