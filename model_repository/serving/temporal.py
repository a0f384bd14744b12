"""`temporal` at run time: steps of many rows together, prefills row by row, keys and values in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from model_repository.serving.noise import Stream
from model_repository.serving.place import ExecutionTarget, open_session
from model_repository.serving.prefix import Prefix, Prefixes, most_columns
from model_repository.serving.sampler import IDLE, Sampler, draw
from model_repository.serving.session import spans, warm_up
from model_repository.serving.turns import Array, BadInputError, Outcome, Turn, check

PREFILL_CHUNK = 128
"""Columns of a prompt per graph run: enough to be bound by arithmetic, few enough for small intermediate tensors (the
scores of attention alone are chunk x window for each head). A static session takes one of every row, see
`StepAttention`."""

TILE = 8
"""Rows that ONNX Runtime's own quantized products take together: a chunk of several of them, but not a lone column, is
rounded the same wherever the chunk ends."""


@dataclass(frozen=True, eq=False)
class _Prompt:
    """What a row is to be fed: columns [S, 17] behind embeddings [E, dim]; `prefix`: what they are part of."""

    row: int
    sampler: Sampler
    prefix: Prefix | None
    columns: Array
    embeddings: Array

    def laid_out(self) -> tuple[Array, Array]:
        """columns [E + S, 17] and embeddings [E + S, dim] as the graph takes them."""
        first = len(self.embeddings)
        columns = np.full((first + len(self.columns), 17), -1, np.int64)
        columns[first:] = self.columns
        embeddings = np.zeros((len(columns), self.embeddings.shape[1]), np.float32)
        embeddings[:first] = self.embeddings
        return columns, embeddings


class TemporalModel:
    """Rows of conversations at their own positions.

    A turn's inputs: columns [S, 17] int64; embeddings [E, dim] float32 of E columns that come before them; sampler
    [3] int64 (seed, index of the column to sample, top_k); temperature [1] float32. E + S = 1 is a step, more a
    prefill. Outputs, for the last column: hidden [dim] float32 and text_token [1] int64.

    With a `prefix` (see there) a turn is about how its conversation begins. The column right after the prefix is a
    step if the prefix is kept, which is then copied into the row; else nothing is done. Columns of the prefix are fed,
    piece by piece, and kept when they are all there. Where no step was done, the only output is progress [2] int64:
    columns of the prefix that are in place, and microseconds the turn took.
    """

    input_names = ("columns", "embeddings", "prefix", "sampler", "temperature")
    optional = frozenset({"embeddings", "prefix"})

    def __init__(
        self,
        model: Path,
        slots: int,
        text_card: int,
        card: int,
        window: int,
        device: ExecutionTarget = None,
    ) -> None:
        self._session = open_session(model, slots, device)
        self._text_card = text_card
        self._card = card
        self._cards = np.array([text_card + 1] + 16 * [card + 1], np.uint64)
        self._window = window
        hidden = self._session.results["hidden"]
        self._dim = int(hidden.shape[1])
        self._position = self._session.feeds["position"]
        self._prefixes = Prefixes(self._session, most_columns(window), window)
        self._columns = np.zeros((slots, 1, 17), np.int64)
        self._embeddings = np.zeros((slots, 1, self._dim), np.float32)
        self._no_embeddings = np.zeros((slots, 1, self._dim), np.float32)

    def warm_up(self) -> None:
        """Run once what the first callers would otherwise wait for; rows are as clean afterwards as a START needs."""
        none = self._no_embeddings
        warm_up(self._session, lambda size: self._run(0, size, self._columns[:size], none[:size], [IDLE] * size))

    def check(self, turn: Turn) -> None:
        """See `Model.check`."""
        columns = turn.inputs["columns"]
        check(columns, "columns", np.int64, (-1, 17))
        if columns.size and not (columns.view(np.uint64) < self._cards).all():
            check(columns[:, 0], "columns[:, 0]", np.int64, (-1,), self._text_card + 1)
            check(columns[:, 1:], "columns[:, 1:]", np.int64, (-1, 16), self._card + 1)
        if "embeddings" in turn.inputs:
            check(turn.inputs["embeddings"], "embeddings", np.float32, (-1, self._dim))
            if not np.isfinite(turn.inputs["embeddings"]).all():
                raise BadInputError("embeddings: values must be finite")
        if not len(columns) and not len(turn.inputs.get("embeddings", ())):
            raise BadInputError("columns: expected at least one column")
        Sampler.of(turn.inputs)
        Prefix.of(turn.inputs)

    def run(self, turns: Sequence[Turn]) -> Outcome:
        """See `Model.run`."""
        outcome = Outcome()
        steps: list[tuple[Turn, Sampler]] = []
        prompts: list[_Prompt] = []
        for turn in turns:
            try:
                sampler, prefix = Sampler.of(turn.inputs), Prefix.of(turn.inputs)
                if turn.start:
                    self._session.reset(turn.row)
                    self._position[turn.row] = 0
                    self._prefixes.begin(turn.row)
                columns, embeddings = turn.inputs["columns"], self._given(turn)
                if prefix is not None and not self._recall(turn, prefix):
                    if prefix.at == prefix.columns:
                        outcome.outputs[turn.row] = self._progress(turn.row, 0.0)
                        continue
                    self._prefixes.expect(turn.row, prefix, len(embeddings) + len(columns))
                elif len(columns) == 1 and not len(embeddings):
                    steps.append((turn, sampler))
                    continue
                else:
                    prefix = None
                prompts.append(_Prompt(turn.row, sampler, prefix, columns, embeddings))
            except ValueError as error:
                outcome.errors[turn.row] = error
        for group in [prompts] if self._session.static else [[prompt] for prompt in prompts]:
            self._feed(group, outcome)
        if steps:
            self._step(steps)
            outcome.outputs |= {turn.row: self._answer(turn.row) for turn, _ in steps}
        return outcome

    def _recall(self, turn: Turn, prefix: Prefix) -> bool:
        """Whether the turn's column may be stepped, because it follows a prefix that is now in place."""
        return prefix.at == prefix.columns and self._prefixes.recall(turn.row, prefix)

    def _feed(self, prompts: Sequence[_Prompt], outcome: Outcome) -> None:
        """Columns of one row, or of several whose session takes them one by one; of a prefix the answer is how far it
        has come.
        """
        began = perf_counter()
        answers = self._in_waves(prompts) if self._session.static else self._in_chunks(*prompts)
        for prompt in prompts:
            try:
                if prompt.prefix is not None:
                    self._prefixes.add(prompt.row, prompt.prefix, prompt.embeddings, prompt.columns)
                    answers[prompt.row] = self._progress(prompt.row, perf_counter() - began)
                outcome.outputs[prompt.row] = answers[prompt.row]
            except ValueError as error:
                outcome.errors[prompt.row] = error

    def _progress(self, row: int, seconds: float) -> dict[str, Array]:
        return {"progress": np.array([self._position[row], round(seconds * 1e6)], np.int64)}

    def _step(self, steps: Sequence[tuple[Turn, Sampler]]) -> None:
        """One column for each of several rows, in as few graph runs as are worth the resting rows they take along."""
        samplers = {}
        for turn, sampler in steps:
            self._columns[turn.row] = turn.inputs["columns"]
            samplers[turn.row] = sampler
        for start, stop in spans(sorted(samplers), self._session.widest_gap):
            columns, none = self._columns[start:stop], self._no_embeddings[start:stop]
            self._run(start, stop, columns, none, [samplers.get(row, IDLE) for row in range(start, stop)])
        for row in samplers:
            self._position[row] += 1

    def _in_chunks(self, prompt: _Prompt) -> dict[int, dict[str, Array]]:
        """Many columns of one row, in chunks that do not wrap around the ring; past its end, one by one."""
        row, (columns, embeddings) = prompt.row, prompt.laid_out()
        done = 0
        while done < len(columns):
            room = self._window - int(self._position[row])
            left = len(columns) - done
            count = max(1, min(left, PREFILL_CHUNK - TILE if left == PREFILL_CHUNK + 1 else PREFILL_CHUNK, room))
            chunk = slice(done, done + count)
            self._run(row, row + 1, columns[None, chunk], embeddings[None, chunk], [prompt.sampler])
            self._position[row] += count
            done += count
        return {row: self._answer(row)}

    def _in_waves(self, prompts: Sequence[_Prompt]) -> dict[int, dict[str, Array]]:
        """Many columns of several rows, the next one of each in every run; the answers are those of the last ones."""
        answers = {}
        pending = {prompt.row: (prompt.sampler, *prompt.laid_out()) for prompt in prompts}
        column = 0
        while pending:
            start, stop = min(pending), max(pending) + 1
            samplers = [IDLE] * (stop - start)
            for row, (sampler, columns, embeddings) in pending.items():
                samplers[row - start] = sampler
                self._columns[row], self._embeddings[row] = columns[column], embeddings[column]
            self._run(start, stop, self._columns[start:stop], self._embeddings[start:stop], samplers)
            column += 1
            for row in pending:
                self._position[row] += 1
            for row in [row for row, (_, columns, _) in pending.items() if len(columns) == column]:
                answers[row] = self._answer(row)
                del pending[row]
        return answers

    def _given(self, turn: Turn) -> Array:
        return turn.inputs.get("embeddings", self._no_embeddings[0, :0])

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
