"""`temporal` at run time: steps of many rows together, prefills row by row, keys and values in place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from model_repository.serving.noise import Stream
from model_repository.serving.sampler import IDLE, Sampler, draw
from model_repository.serving.session import StatefulSession, warm_up_sizes
from model_repository.serving.turns import Array, BadInputError, Outcome, Turn, check

PREFILL_CHUNK = 512
"""Columns of a prompt per graph run: enough to be bound by arithmetic, few enough for small intermediate tensors."""


class TemporalModel:
    """Rows of conversations at their own positions.

    A turn's inputs: columns [S, 17] int64; embeddings [E, dim] float32 of E columns that come before them; sampler
    [3] int64 (seed, index of the column to sample, top_k); temperature [1] float32. E + S = 1 is a step, more a
    prefill. Outputs, for the last column: hidden [dim] float32 and text_token [1] int64.
    """

    input_names = ("columns", "embeddings", "sampler", "temperature")
    optional = frozenset({"embeddings"})

    def __init__(self, model: Path, slots: int, text_card: int, card: int, window: int) -> None:
        self._session = StatefulSession(model, slots)
        self._text_card = text_card
        self._card = card
        self._cards = np.array([text_card + 1] + 16 * [card + 1], np.uint64)
        self._window = window
        hidden = self._session.results["hidden"]
        self._dim = int(hidden.shape[1])
        self._position = self._session.feeds["position"]
        self._columns = np.zeros((slots, 1, 17), np.int64)
        self._no_embeddings = np.zeros((slots, 1, self._dim), np.float32)

    def warm_up(self) -> None:
        """Run once what the first callers would otherwise wait for; rows are as clean afterwards as a START needs."""
        for size in warm_up_sizes(self._session.slots):
            self._run(0, size, self._columns[:size], self._no_embeddings[:size], [IDLE] * size)

    def run(self, turns: Sequence[Turn]) -> Outcome:
        """See `Model.run`."""
        outcome = Outcome()
        steps: list[tuple[Turn, Sampler]] = []
        for turn in turns:
            try:
                sampler = self._check(turn)
            except ValueError as error:
                outcome.errors[turn.row] = error
                continue
            if turn.start:
                self._session.reset(turn.row)
                self._position[turn.row] = 0
            if len(turn.inputs["columns"]) == 1 and not len(turn.inputs.get("embeddings", ())):
                steps.append((turn, sampler))
            else:
                self._prefill(turn, sampler)
                outcome.outputs[turn.row] = self._answer(turn.row)
        if steps:
            self._step(steps)
            outcome.outputs |= {turn.row: self._answer(turn.row) for turn, _ in steps}
        return outcome

    def _step(self, steps: Sequence[tuple[Turn, Sampler]]) -> None:
        """One column for each of several rows, in one graph run over the rows they span."""
        start = min(turn.row for turn, _ in steps)
        stop = max(turn.row for turn, _ in steps) + 1
        samplers = [IDLE] * (stop - start)
        for turn, sampler in steps:
            self._columns[turn.row] = turn.inputs["columns"]
            samplers[turn.row - start] = sampler
        self._run(start, stop, self._columns[start:stop], self._no_embeddings[start:stop], samplers)
        for turn, _ in steps:
            self._position[turn.row] += 1

    def _prefill(self, turn: Turn, sampler: Sampler) -> None:
        """Many columns of one row, in chunks that do not wrap around the ring; past its end, one by one."""
        tokens = turn.inputs["columns"]
        given = turn.inputs.get("embeddings", np.empty((0, self._dim), np.float32))
        columns = np.full((len(given) + len(tokens), 17), -1, np.int64)
        columns[len(given) :] = tokens
        embeddings = np.zeros((len(columns), self._dim), np.float32)
        embeddings[: len(given)] = given
        done = 0
        while done < len(columns):
            room = self._window - int(self._position[turn.row])
            count = max(1, min(len(columns) - done, PREFILL_CHUNK, room))
            chunk = slice(done, done + count)
            self._run(turn.row, turn.row + 1, columns[None, chunk], embeddings[None, chunk], [sampler])
            self._position[turn.row] += count
            done += count

    def _run(self, start: int, stop: int, columns: Array, embeddings: Array, samplers: Sequence[Sampler]) -> None:
        noise, top_k, temperature = draw(samplers, Stream.TEXT, self._text_card, (1,))
        self._session.feeds["noise"][start:stop] = noise
        self._session.feeds["top_k"][start:stop] = top_k
        self._session.feeds["temperature"][start:stop] = temperature
        dynamic = {"columns": columns, "embeddings": embeddings}
        self._session.run(start, stop, {name: np.ascontiguousarray(array) for name, array in dynamic.items()})

    def _answer(self, row: int) -> dict[str, Array]:
        results = self._session.results
        return {"hidden": results["hidden"][row].copy(), "text_token": results["text_token"][row : row + 1].copy()}

    def _check(self, turn: Turn) -> Sampler:
        columns = turn.inputs["columns"]
        check(columns, "columns", np.int64, (-1, 17))
        if columns.size and not (columns.view(np.uint64) < self._cards).all():
            check(columns[:, 0], "columns[:, 0]", np.int64, (-1,), self._text_card + 1)
            check(columns[:, 1:], "columns[:, 1:]", np.int64, (-1, 16), self._card + 1)
        if "embeddings" in turn.inputs:
            check(turn.inputs["embeddings"], "embeddings", np.float32, (-1, self._dim))
        if len(columns) < 1:
            raise BadInputError("columns: expected at least one column")
        return Sampler.of(turn.inputs)
