"""How many steps of a prompt go to the temporal model at once, and when the next chunk may follow.

The temporal model runs one thing at a time, and on a CPU it uses the other models' cores. A frame that arrives while a
chunk runs waits for its end. So during other conversations a chunk takes at most a share of a frame, and all
chunks together at most that share of the time. The chunk size adapts: it doubles or halves with the measured time of
the last chunk. While there is no other conversation, a chunk may take a second: a conversation that starts meanwhile
waits at most that long.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

MAX_STEPS = 512
"""Steps of a chunk at most."""

MAX_SHARED_STEPS = 64
"""The same during other conversations: what a device runs at once. More would be two runs, and a frame would wait for
both."""

FIRST_STEPS = 128
"""Steps of the first chunk without other conversations, before any chunk has been timed."""

ALONE_SECONDS = 1.0
"""Seconds that a chunk may take without other conversations."""

MIN_STEPS = 8
"""Below this a chunk hardly gets faster: its time is that of reading the model's weights. All chunks begin at multiples
of it: where ONNX Runtime multiplies quantized matrices, a row's rounding depends on the rows beside it."""

SHARE = 0.2
"""Share of a frame's 80 ms that a chunk may take, so that a step and the other stages of a frame fit beside it."""


class ChunkPacer:
    """Sizes and times the chunks of one temporal model. `frame_seconds`: the length of a frame."""

    def __init__(self, frame_seconds: float, clock: Callable[[], float] = monotonic) -> None:
        self._frame_seconds = frame_seconds
        self._limit = SHARE * frame_seconds
        self._clock = clock
        self._next_at = 0.0
        self._shared_steps = MIN_STEPS
        self._alone_steps = FIRST_STEPS
        self.chunks = 0
        """Chunks so far."""

    def steps(self, others_talk: bool) -> int:
        """Steps that the next chunk may have."""
        return self._shared_steps if others_talk else self._alone_steps

    def pause(self, others_talk: bool) -> float:
        """Seconds until the next chunk may begin, at most one frame."""
        return max(self._next_at - self._clock(), 0.0) if others_talk else 0.0

    def measured(self, steps: int, seconds: float) -> None:
        """Adapt to a chunk of so many steps that took so many seconds."""
        self.chunks += 1
        fitting = int(ALONE_SECONDS * steps / max(seconds, 1e-6))
        self._alone_steps = min(max(fitting // MIN_STEPS * MIN_STEPS, MIN_STEPS), MAX_STEPS)
        self._next_at = self._clock() + min(seconds * (1 / SHARE - 1), self._frame_seconds)
        if steps <= self._shared_steps and seconds > self._limit:
            self._shared_steps = max(self._shared_steps // 2, MIN_STEPS)
        elif steps >= self._shared_steps and 2 * seconds * self._shared_steps / steps <= self._limit:
            self._shared_steps = min(self._shared_steps * 2, MAX_SHARED_STEPS)


def chunk_length(done: int, total: int, steps: int, window: int) -> int:
    """How many of `total` steps follow the first `done`: `steps`, or the rest.

    Never a single step, if that can be avoided: a run of one step rounds differently from the same step in a longer
    run, and a conversation's tokens must not depend on the server's load. Beyond the model's `window`, steps run one by
    one anyway.
    """
    count = min(steps, total - done)
    for end in (min(window, total), total):
        if end - (done + count) == 1:
            count += 1
    return count
