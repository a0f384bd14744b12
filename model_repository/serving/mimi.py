"""`mimi_encoder` and `mimi_decoder` at run time: one frame of each row that takes part, streaming state in place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model_repository.serving.execution_target import ExecutionTarget, open_session
from model_repository.serving.row_request import BadInputError, BatchResult, RowRequest, check, split
from model_repository.serving.session import row_ranges, warm_up
from model_repository.serving.slots import Slots

_STEPS_PER_FRAME = 2
"""Latent steps by which a frame advances a row's position."""

MAX_SAMPLE = 10.0
"""Largest sample that is encoded unchanged, 20 dB over full scale; louder ones are clamped. Samples of 3e38 would turn
activations into infinity and NaN, which the row's ring of keys and values keeps for the rest of the conversation."""


class MimiModel:
    """One half of the codec: a row's only input and output are one frame, e.g. pcm [1920] -> codes [8].

    `high` bounds an integer input's values (codes), exclusively; None for samples, which must be finite and are clamped
    to -MAX_SAMPLE..MAX_SAMPLE.
    """

    optional: frozenset[str] = frozenset()

    def __init__(self, model: Path, slots: int, high: int | None = None, device: ExecutionTarget = None) -> None:
        self.session = open_session(model, slots, device)
        self.slots = Slots(self.session)
        names = [name for name in self.session.feeds if name not in ("position", "active")]
        self._input = names[0]
        self._output = next(iter(self.session.results))
        self._high = high
        self.input_names: Sequence[str] = (self._input,)

    def warm_up(self) -> None:
        """Run once whatever is slow the first time. Rows need not be clean afterwards: a START cleans them."""
        warm_up(self.session, lambda size: self.session.run(0, size))

    def parse(self, request: RowRequest) -> RowRequest:
        """See `Model.parse`."""
        frames, expected = request.inputs[self._input], self.session.feeds[self._input]
        check(frames, self._input, expected.dtype.type, expected.shape[1:], self._high)
        if expected.dtype == np.float32 and not np.isfinite(frames).all():
            raise BadInputError(f"{self._input}: samples must be finite")
        return request

    def run(self, requests: Sequence[RowRequest]) -> list[BatchResult]:
        """See `Model.run`."""
        feeds = self.session.feeds
        rows = np.concatenate([request.rows for request in requests])
        frames = np.concatenate([request.inputs[self._input] for request in requests])
        self.slots.clean(rows)
        feeds[self._input][rows] = frames.clip(-MAX_SAMPLE, MAX_SAMPLE) if frames.dtype == np.float32 else frames
        feeds["active"][:] = False
        feeds["active"][rows] = True
        for start, stop in row_ranges(sorted(rows.tolist()), self.session.max_gap):
            self.session.run(start, stop)
        self.slots.advance(rows, _STEPS_PER_FRAME)
        return split(requests, {self._output: self.session.results[self._output][rows]})
