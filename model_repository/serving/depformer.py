"""`depformer` at run time: no state between frames, so any requests make a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model_repository.serving.cpu import open_on_cpu
from model_repository.serving.noise import Stream
from model_repository.serving.place import ExecutionTarget, open_session
from model_repository.serving.row_request import Array, BadInputError, BatchResult, RowRequest, check, split
from model_repository.serving.sampler import Samplers
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
        """`slots`: the most rows of an execution, which a session on a `device` must know."""
        session: _OnCpu | _OnDevice = _OnCpu(model) if device is None else _OnDevice(model, slots, device)
        self._sampled = session
        self._dim = int(session.shapes["hidden"][1])
        self._draws = tuple(session.shapes["noise"][1:])
        self._text_card = text_card
        self._card = card

    def warm_up(self, slots: int) -> None:
        """Run once whatever is slow the first time."""
        for size in warm_up_sizes(slots):
            samplers = Samplers(np.tile([0, 0, 1], (size, 1)), np.ones(size, np.float32))
            hidden, text_token = np.zeros((size, self._dim), np.float32), np.zeros((size, 1), np.int64)
            self.run([DepformerRequest(np.arange(size), hidden, text_token, samplers)])

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
        codes = self._sampled(
            {
                "hidden": np.concatenate([request.hidden for request in requests]),
                "text_token": np.concatenate([request.text_token[:, 0] for request in requests]),
                "noise": samplers.noise(Stream.AUDIO, self._draws),
                "top_k": samplers.ranks(self._card),
                "temperature": samplers.temperature,
            }
        )
        return split(requests, {"codes": codes})


class _OnCpu:
    """The graph with any number of rows: all its inputs -> codes [B, 8]."""

    def __init__(self, model: Path) -> None:
        self._session = open_on_cpu(model)
        self.shapes = {node.name: node.shape for node in self._session.get_inputs()}

    def __call__(self, feeds: Mapping[str, Array]) -> Array:
        codes: Array = self._session.run(["codes"], dict(feeds))[0]
        return codes


class _OnDevice:
    """The same, with at most `slots` rows at a time."""

    def __init__(self, model: Path, slots: int, device: ExecutionTarget) -> None:
        self._session = open_session(model, slots, device)
        self.shapes = {name: array.shape for name, array in self._session.feeds.items()}

    def __call__(self, feeds: Mapping[str, Array]) -> Array:
        rows = len(feeds["hidden"])
        for name, array in feeds.items():
            self._session.feeds[name][:rows] = array
        self._session.run(0, rows)
        codes: Array = self._session.results["codes"][:rows].copy()
        return codes
