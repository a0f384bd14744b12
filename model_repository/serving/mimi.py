"""`mimi_encoder` and `mimi_decoder` at run time: one frame of each row that takes part, streaming state in place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model_repository.serving.place import ExecutionTarget, open_session
from model_repository.serving.session import spans, warm_up
from model_repository.serving.turns import BadInputError, Outcome, Turn, check

_STEPS_PER_FRAME = 2
"""Latent steps that a frame advances a row's position by."""

MAX_SAMPLE = 10.0
"""Largest sample that is encoded as it is, 20 dB over full scale; louder ones are clamped. Samples of 3e38 would turn
activations into infinity and NaN, which the row's ring of keys and values keeps for the rest of the conversation."""


class MimiModel:
    """Either half of the codec: a turn's only input and output are one frame, e.g. pcm [1920] -> codes [8].

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

    def check(self, turn: Turn) -> None:
        """See `Model.check`."""
        frame, expected = turn.inputs[self._input], self._session.feeds[self._input]
        check(frame, self._input, expected.dtype.type, expected.shape[1:], self._high)
        if expected.dtype == np.float32 and not np.isfinite(frame).all():
            raise BadInputError(f"{self._input}: samples must be finite")

    def run(self, turns: Sequence[Turn]) -> Outcome:
        """See `Model.run`."""
        feeds = self._session.feeds
        frames, position, active = feeds[self._input], feeds["position"], feeds["active"]
        outcome = Outcome()
        active[:] = False
        for turn in turns:
            if turn.start:
                self._session.reset(turn.row)
                position[turn.row] = 0
            frame = turn.inputs[self._input]
            if frames.dtype == np.float32:
                np.clip(frame, -MAX_SAMPLE, MAX_SAMPLE, out=frames[turn.row])
            else:
                frames[turn.row] = frame
            active[turn.row] = True
        rows = np.flatnonzero(active)
        if len(rows):
            for start, stop in spans(rows.tolist(), self._session.widest_gap):
                self._session.run(start, stop)
            position[rows] += _STEPS_PER_FRAME
            results = self._session.results[self._output]
            outcome.outputs = {int(row): {self._output: results[row].copy()} for row in rows}
        return outcome
