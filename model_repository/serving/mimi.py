"""`mimi_encoder` and `mimi_decoder` at run time: one frame of each row that takes part, streaming state in place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model_repository.serving.place import ExecutionTarget, open_session
from model_repository.serving.row_request import BadInputError, BatchResult, RowRequest, check, split
from model_repository.serving.session import spans, warm_up

_STEPS_PER_FRAME = 2
"""Latent steps that a frame advances a row's position by."""

MAX_SAMPLE = 10.0
"""Largest sample that is encoded as it is, 20 dB over full scale; louder ones are clamped. Samples of 3e38 would turn
activations into infinity and NaN, which the row's ring of keys and values keeps for the rest of the conversation."""


class MimiModel:
    """Either half of the codec: a row's only input and output are one frame, e.g. pcm [1920] -> codes [8].

    `high` bounds an integer input's values (codes), exclusively; None for samples, which must be finite and are clamped
    to -MAX_SAMPLE..MAX_SAMPLE.
    """

    optional: frozenset[str] = frozenset()

    def __init__(self, model: Path, slots: int, high: int | None = None, device: ExecutionTarget = None) -> None:
        self._session = open_session(model, slots, device)
        names = [name for name in self._session.feeds if name not in ("position", "active")]
        self._input = names[0]
        self._output = next(iter(self._session.results))
        self._high = high
        self.input_names: Sequence[str] = (self._input,)

    def warm_up(self) -> None:
        """Run once what the first callers would otherwise wait for; rows are as clean afterwards as a START needs."""
        warm_up(self._session, lambda size: self._session.run(0, size))

    def check(self, request: RowRequest) -> None:
        """See `Model.check`."""
        frames, expected = request.inputs[self._input], self._session.feeds[self._input]
        check(frames, self._input, expected.dtype.type, expected.shape[1:], self._high)
        if expected.dtype == np.float32 and not np.isfinite(frames).all():
            raise BadInputError(f"{self._input}: samples must be finite")

    def run(self, requests: Sequence[RowRequest]) -> list[BatchResult]:
        """See `Model.run`."""
        feeds, request = self._session.feeds, RowRequest.merged(requests, self.input_names)
        rows, frames = request.rows, request.inputs[self._input]
        for row in rows[request.start].tolist():
            self._session.reset(row)
            feeds["position"][row] = 0
        feeds[self._input][rows] = frames.clip(-MAX_SAMPLE, MAX_SAMPLE) if frames.dtype == np.float32 else frames
        feeds["active"][:] = False
        feeds["active"][rows] = True
        for start, stop in spans(sorted(rows.tolist()), self._session.widest_gap):
            self._session.run(start, stop)
        feeds["position"][rows] += _STEPS_PER_FRAME
        return split(requests, {self._output: self._session.results[self._output][rows]})
