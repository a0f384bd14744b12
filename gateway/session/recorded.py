"""The response to a recording, frame by frame: what is fed after the recording's end, and when the response ends."""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator

import numpy as np

from gateway.audio.squelch import SILENT_RMS
from gateway.engine.backend import Floats, Tokens
from gateway.engine.batch import AgentFrame
from gateway.engine.conversation import Conversation
from gateway.engine.forced_text import END_OF_PADDING
from gateway.manifest import Manifest

MAX_FRAMES_AFTER_USER = 250
"""Frames (20 s) that a response may go on after the recording when there is no `max_steps`."""

SILENCE_SECONDS = 2.0
"""A response ends when the agent has been silent for so long after the recording's end."""


def split(pcm: Floats, frame_size: int) -> Floats:
    """pcm [T] -> frames [ceil(T / frame_size), frame_size], the last one padded with zeros."""
    count = -(-len(pcm) // frame_size)
    frames = np.zeros((count, frame_size), np.float32)
    frames.reshape(-1)[: len(pcm)] = pcm
    return frames


def frame_limit(pcm: Floats, manifest: Manifest, max_steps: int | None, limit: int | None) -> int:
    """Frames that the response to `pcm` [T] has at most. `limit`: without `max_steps`."""
    natural = -(-len(pcm) // manifest.frame_size) + MAX_FRAMES_AFTER_USER
    return max_steps or min(natural, limit or natural)


class RecordedResponse:
    """The response to one recording.

    With `max_steps` it has exactly that many frames. Otherwise it has the recording's frames + MAX_FRAMES_AFTER_USER,
    or fewer if the agent falls silent after the recording's end. Silence is fed once the recording is over.
    """

    def __init__(
        self,
        conversation: Conversation,
        pcm: Floats,
        manifest: Manifest,
        max_steps: int | None,
        limit: int | None = None,
    ) -> None:
        """`pcm` [T] float32 at 24 kHz. `limit`: frames at most when there is no `max_steps`."""
        self._conversation = conversation
        # Not split: a copy of ten minutes would occupy the event loop for 20 ms.
        self._pcm = pcm
        self._frame_size = manifest.frame_size
        self._user_frames = -(-len(pcm) // manifest.frame_size)
        self._silence = np.zeros(manifest.frame_size, np.float32)
        self._padding = (END_OF_PADDING, manifest.text_padding_id)
        self._silent_frames = round(SILENCE_SECONDS * manifest.frame_rate)
        self._may_stop = max_steps is None
        self.max_steps = frame_limit(pcm, manifest, max_steps, limit)
        self._codebooks = manifest.codebooks
        self._user_codes = array("q")

    @property
    def user_codes(self) -> Tokens:
        """User codes [F, 8] int64, one row per agent frame; complete when `frames` has ended."""
        return np.reshape(self._user_codes, (-1, self._codebooks))

    async def frames(self) -> AsyncIterator[AgentFrame]:
        """Yield the agent's frames as they are generated: from frame 0, or from where an earlier turn ended."""
        conversation = self._conversation
        frame = await (conversation.resume() if conversation.started else conversation.start())
        first = frame.index
        silent = 0
        while True:
            yield frame
            silent = silent + 1 if frame.index - first >= self._user_frames and self._is_silent(frame) else 0
            if frame.index - first + 1 == self.max_steps or (self._may_stop and silent >= self._silent_frames):
                break
            frame = await conversation.step(self._user_frame(frame.index - first))
            if frame.user_codes is not None:
                self._user_codes.extend(frame.user_codes.tolist())
        # The last agent frame does not need the codes of its user frame. They are reported nevertheless, and the next
        # turn begins with them.
        last = await conversation.encode(self._user_frame(frame.index - first))
        self._user_codes.extend(last.tolist())

    def _user_frame(self, index: int) -> Floats:
        if index >= self._user_frames:
            return self._silence
        begin = index * self._frame_size
        frame = self._pcm[begin : begin + self._frame_size]
        return np.pad(frame, (0, self._frame_size - len(frame))) if len(frame) < self._frame_size else frame

    def _is_silent(self, frame: AgentFrame) -> bool:
        return frame.text_token in self._padding and float(np.sqrt(np.mean(frame.pcm**2))) < SILENT_RMS
