"""`depformer` at run time: no state between frames, so any requests make a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model_repository.serving.execution_target import ExecutionTarget, open_session
from model_repository.serving.row_request import Array, BadInputError, BatchResult, RowRequest, check, split
from model_repository.serving.sampler import Samplers, Stream
from model_repository.serving.session import warm_up_sizes


@dataclass(frozen=True, eq=False)
class DepformerRequest:
    """hidden [N, dim] float32, text_token [N, 1] int64 and how to sample. `rows` are indices of the request."""

    rows: Array
    hidden: Array
    text_token: Array
    samplers: Samplers


class DepformerModel:
    """A row's inputs: hidden [dim] float32, text_token [1] int64, sampler [3] int64 (seed, index of the column to
    sample, top_k), temperature [1] float32. Output: codes [8] int64 of that column.
    """

    input_names: Sequence[str] = ("hidden", "text_token", "sampler", "temperature")
    optional: frozenset[str] = frozenset()

    def __init__(self, model: Path, text_card: int, card: int, slots: int = 1, device: ExecutionTarget = None) -> None:
        """`slots`: the most rows of an execution."""
        self.session = open_session(model, slots, device)
        self._dim = self.session.feeds["hidden"].shape[1]
        self._draws = self.session.feeds["noise"].shape[1:]
        self._text_card = text_card
        self._card = card

    def warm_up(self) -> None:
        """Run once whatever is slow the first time."""
        for size in warm_up_sizes(self.session.slots):
            self.session.run(0, size)

    def parse(self, request: RowRequest) -> DepformerRequest:
        """See `Model.parse`."""
        hidden, text_token = request.inputs["hidden"], request.inputs["text_token"]
        check(hidden, "hidden", np.float32, (self._dim,))
        if not np.isfinite(hidden).all():
            raise BadInputError("hidden: values must be finite")
        check(text_token, "text_token", np.int64, (1,), self._text_card)
        return DepformerRequest(request.rows, hidden, text_token, Samplers.of(request.inputs))

    def run(self, requests: Sequence[DepformerRequest]) -> list[BatchResult]:
        """See `Model.run`."""
        samplers = Samplers.merged([request.samplers for request in requests])
        feeds, rows = self.session.feeds, len(samplers.temperature)
        np.concatenate([request.hidden for request in requests], out=feeds["hidden"][:rows])
        np.concatenate([request.text_token[:, 0] for request in requests], out=feeds["text_token"][:rows])
        feeds["noise"][:rows] = samplers.noise(Stream.AUDIO, self._draws)
        feeds["top_k"][:rows] = samplers.ranks(self._card)
        feeds["temperature"][:rows] = samplers.temperature
        self.session.run(0, rows)
        return split(requests, {"codes": self.session.results["codes"][:rows].copy()})
