"""The token grid: 17 streams (text, 8 agent codebooks, 8 user codebooks), each written with its own delay.

Frame n's token of stream k lies in column n + delay_k. The models read and write columns; people speak frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gateway.engine.backend import Tokens

UNKNOWN = -1
TEXT = 0
AGENT = slice(1, 9)
USER = slice(9, 17)
STREAMS = 17


def lay_out(frames: Tokens, delays: Sequence[int]) -> Tokens:
    """frames [F, 17] -> columns [F + 1, 17], UNKNOWN where no frame wrote.

    With delays of 0 and 1 the last column holds only the delayed tokens of the last frame, and the first column
    lacks those of the frame before `frames`.
    """
    count = len(frames)
    columns = np.full((count + 1, STREAMS), UNKNOWN, np.int64)
    for stream, delay in enumerate(delays):
        columns[delay : delay + count, stream] = frames[:, stream]
    return columns


def begin(columns: Tokens, delays: Sequence[int], initial: Tokens) -> None:
    """Put the initial tokens [17] where a sequence starts: stream k of columns 0..delay_k.

    The reference overwrites the first frame so; frame 0 is therefore lost.
    """
    for stream, delay in enumerate(delays):
        columns[: delay + 1, stream] = initial[stream]


class TokenGrid:
    """The three columns a running conversation touches: the one being completed, the one before, the one after."""

    def __init__(self, delays: Sequence[int], last: Tokens, known: Tokens, position: int) -> None:
        """`last` [17] is column `position`, complete; `known` [17] is what is fixed of the next one, else UNKNOWN."""
        self._undelayed = np.array(delays) == 0
        self._before = np.full(STREAMS, UNKNOWN, np.int64)
        self._now = last.copy()
        self._after = known.copy()
        self.position = position

    def hear(self, codes: Tokens) -> Tokens:
        """Write the user's codes [8] of the frame at this position; the column [17] is then complete and returned."""
        undelayed = self._undelayed[USER]
        self._now[USER][undelayed] = codes[undelayed]
        self._after[USER][~undelayed] = codes[~undelayed]
        return self._now

    def advance(self, text_token: int, codes: Tokens) -> None:
        """Move to the next column and write what was drawn for it, where nothing was fixed before."""
        self._before, self._now = self._now, self._after
        self._after = np.full(STREAMS, UNKNOWN, np.int64)
        self.position += 1
        if self._now[TEXT] == UNKNOWN:
            self._now[TEXT] = text_token
        agent = self._now[AGENT]
        np.copyto(agent, codes, where=agent == UNKNOWN)

    def frame(self) -> Tokens:
        """The newest frame [17] all of whose agent tokens are there: the one at the column before."""
        return np.where(self._undelayed, self._before, self._now)
