"""The token grid: 17 streams (text, 8 agent codebooks, 8 user codebooks), each written with its own delay.

The token of frame n and stream k belongs to step n + delay_k. Models read and write steps; clients send and receive
frames. Delays are 0 and 1 (config.json of the checkpoint, `delays`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gateway.engine.backend import Tokens
from gateway.engine.prefix import PromptPrefix

UNKNOWN = -1
TEXT = 0
AGENT = slice(1, 9)
USER = slice(9, 17)
STREAMS = 17

_NOW, _NEXT = 0, 1


def delay_frames(frames: Tokens, delays: Sequence[int]) -> Tokens:
    """frames [F, 17] -> steps [F + 1, 17], UNKNOWN where no frame wrote.

    With delays of 0 and 1 the last step holds only the delayed tokens of the last frame, and the first step lacks those
    of the frame before `frames`.
    """
    count = len(frames)
    steps = np.full((count + 1, STREAMS), UNKNOWN, np.int64)
    for stream, delay in enumerate(delays):
        steps[delay : delay + count, stream] = frames[:, stream]
    return steps


def set_initial_tokens(steps: Tokens, delays: Sequence[int], initial: Tokens) -> None:
    """Write the initial tokens [17] at the start of a sequence: stream k of steps 0..delay_k.

    The reference overwrites the first frame in this way, so frame 0 is lost.
    """
    for stream, delay in enumerate(delays):
        steps[: delay + 1, stream] = initial[stream]


class TokenGrid:
    """The two steps that each conversation writes to: the current one and the next, [slots, 2, 17] int64."""

    def __init__(self, slots: int, delays: Sequence[int]) -> None:
        undelayed = np.array(delays) == 0
        user = np.arange(USER.start, USER.stop)
        self._undelayed = undelayed
        self._user_now, self._user_next = user[undelayed[USER]], user[~undelayed[USER]]
        self._steps = np.full((slots, 2, STREAMS), UNKNOWN, np.int64)

    def start(self, slot: int, prefix: PromptPrefix) -> None:
        """Begin a conversation at the prompt's last step; the next one holds what the prompt fixes of it."""
        self._steps[slot, _NOW] = prefix.steps[-1]
        self._steps[slot, _NEXT] = prefix.fixed

    def advance(self, slots: Tokens, user_codes: Tokens) -> Tokens:
        """Write user codes [B, 8] of the current frames; return the current steps [B, 17], now complete.

        Writing the same codes again changes nothing, so a step can be repeated.
        """
        steps = self._steps[slots]
        steps[:, _NOW, self._user_now] = user_codes[:, self._user_now - USER.start]
        steps[:, _NEXT, self._user_next] = user_codes[:, self._user_next - USER.start]
        self._steps[slots] = steps
        return steps[:, _NOW]

    def emit(self, slots: Tokens, text_tokens: Tokens, agent_codes: Tokens) -> Tokens:
        """Write text tokens [B] and agent codes [B, 8] to the next steps where the prompt fixed none, and move there.

        Returns the newest frames [B, 17] whose agent tokens are complete: those of the step that was current before.
        """
        steps = self._steps[slots]
        before, now = steps[:, _NOW], steps[:, _NEXT]
        sampled = np.concatenate([text_tokens[:, None], agent_codes], axis=1)
        chosen = now[:, : USER.start]
        np.copyto(chosen, sampled, where=chosen == UNKNOWN)
        self._steps[slots, _NOW] = now
        self._steps[slots, _NEXT] = UNKNOWN
        frames: Tokens = np.where(self._undelayed, before, now)
        return frames
