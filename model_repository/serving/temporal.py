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
from model_repository.serving.row_request import Array, BadInputError, BatchResult, RowRequest, check, split
from model_repository.serving.sampler import IDLE_NOISE, IDLE_TEMPERATURE, IDLE_TOP_K, Samplers
from model_repository.serving.session import spans, warm_up

PREFILL_CHUNK = 128
"""Columns of a prompt per graph run: enough to be bound by arithmetic, few enough for small intermediate tensors (the
scores of attention alone are chunk x window for each head). A static session takes one of every row, see
`StepAttention`."""

TILE = 8
"""Rows that ONNX Runtime's own quantized products take together: a chunk of several of them, but not a lone column, is
rounded the same wherever the chunk ends."""


@dataclass(frozen=True, eq=False)
class _Prompt:
    """What a row is to be fed: columns [S, 17] behind embeddings [E, dim]; `prefix`: what they are part of.

    index: of its request.
    """

    index: int
    row: int
    sampler: Samplers
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

    A row's inputs: columns [S, 17] int64; embeddings [E, dim] float32 of E columns that come before them; sampler
    [3] int64 (seed, index of the column to sample, top_k); temperature [1] float32. E + S = 1 is a step, more a
    prefill. Outputs, for the last column: hidden [dim] float32 and text_token [1] int64.

    With a `prefix` (see there) a request is about how its conversation begins. The column right after the prefix is a
    step if the prefix is kept, which is then copied into the row; else nothing is done. Columns of the prefix are fed,
    piece by piece, and kept when they are all there. Where no step was done, the only output is progress [2] int64:
    columns of the prefix that are in place, and microseconds the request took.
    """

    input_names: Sequence[str] = ("columns", "embeddings", "prefix", "sampler", "temperature")
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
        self._rest(0, len(none))
        warm_up(self._session, lambda size: self._run(0, size, self._columns[:size], none[:size]))

    def check(self, request: RowRequest) -> None:
        """See `Model.check`."""
        columns = request.inputs["columns"]
        check(columns, "columns", np.int64, (-1, 17))
        if columns.size and not (columns.view(np.uint64) < self._cards).all():
            check(columns[..., 0], "columns[:, 0]", np.int64, (-1,), self._text_card + 1)
            check(columns[..., 1:], "columns[:, 1:]", np.int64, (-1, 16), self._card + 1)
        count = columns.shape[1]
        if "embeddings" in request.inputs:
            embeddings = request.inputs["embeddings"]
            check(embeddings, "embeddings", np.float32, (-1, self._dim))
            if not np.isfinite(embeddings).all():
                raise BadInputError("embeddings: values must be finite")
            count += embeddings.shape[1]
        if not count:
            raise BadInputError("columns: expected at least one column")
        if count > 1 and len(request.rows) > 1:
            raise BadInputError(f"columns: expected one column of each of {len(request.rows)} rows, got {count}")
        Samplers.of(request.inputs)
        Prefix.of(request.inputs)

    def run(self, requests: Sequence[RowRequest]) -> list[BatchResult]:
        """See `Model.run`."""
        answers: dict[int, BatchResult] = {}
        steps: dict[int, RowRequest] = {}
        prompts: list[_Prompt] = []
        for index, request in enumerate(requests):
            try:
                for row in request.rows[request.start].tolist():
                    self._session.reset(row)
                    self._position[row] = 0
                    self._prefixes.begin(row)
                columns, prefix = request.inputs["columns"], Prefix.of(request.inputs)
                embeddings = request.inputs.get("embeddings", self._no_embeddings[:1, :0])
                # With a prefix, or more than one column, there is one row.
                row = int(request.rows[0])
                if prefix is not None and not self._recall(row, prefix):
                    if prefix.at == prefix.columns:
                        answers[index] = self._progress(row, 0.0)
                        continue
                    self._prefixes.expect(row, prefix, embeddings[0], columns[0])
                elif columns.shape[1] == 1 and not embeddings.shape[1]:
                    steps[index] = request
                    continue
                else:
                    prefix = None
                sampler = Samplers.of(request.inputs)
                prompts.append(_Prompt(index, row, sampler, prefix, columns[0], embeddings[0]))
            except ValueError as error:
                answers[index] = error
        for group in [prompts] if self._session.static else [[prompt] for prompt in prompts]:
            answers |= self._feed(group)
        if steps:
            answers |= zip(steps, self._step(list(steps.values())), strict=True)
        return [answers[index] for index in range(len(requests))]

    def _recall(self, row: int, prefix: Prefix) -> bool:
        """Whether the row's column may be stepped, because it follows a prefix that is now in place."""
        return prefix.at == prefix.columns and self._prefixes.recall(row, prefix)

    def _feed(self, prompts: Sequence[_Prompt]) -> dict[int, BatchResult]:
        """Columns of one row, or of several whose session takes them one by one; of a prefix the answer is how far it
        has come. By request.
        """
        began = perf_counter()
        outputs = self._in_waves(prompts) if self._session.static else self._in_chunks(*prompts)
        answers: dict[int, BatchResult] = {}
        for prompt in prompts:
            answers[prompt.index] = outputs[prompt.row]
            if prompt.prefix is not None:
                self._prefixes.add(prompt.row, prompt.prefix, prompt.embeddings, prompt.columns)
                answers[prompt.index] = self._progress(prompt.row, perf_counter() - began)
        return answers

    def _progress(self, row: int, seconds: float) -> dict[str, Array]:
        return {"progress": np.array([[self._position[row], round(seconds * 1e6)]], np.int64)}

    def _step(self, requests: Sequence[RowRequest]) -> list[BatchResult]:
        """One column for each of several rows, in as few graph runs as are worth the resting rows they take along."""
        request = RowRequest.merged(requests, ("columns", "sampler", "temperature"))
        rows = request.rows
        self._columns[rows] = request.inputs["columns"]
        found = spans(sorted(rows.tolist()), self._session.widest_gap)
        for start, stop in found:
            self._rest(start, stop)
        self._take_part(rows, Samplers.of(request.inputs))
        for start, stop in found:
            self._run(start, stop, self._columns[start:stop], self._no_embeddings[start:stop])
        self._position[rows] += 1
        return split(requests, self._outputs(rows))

    def _in_chunks(self, prompt: _Prompt) -> dict[int, dict[str, Array]]:
        """Many columns of one row, in chunks that do not wrap around the ring; past its end, one by one."""
        row, (columns, embeddings) = prompt.row, prompt.laid_out()
        self._take_part(np.array([row]), prompt.sampler)
        done = 0
        while done < len(columns):
            room = self._window - int(self._position[row])
            left = len(columns) - done
            count = max(1, min(left, PREFILL_CHUNK - TILE if left == PREFILL_CHUNK + 1 else PREFILL_CHUNK, room))
            chunk = slice(done, done + count)
            self._run(row, row + 1, columns[None, chunk], embeddings[None, chunk])
            self._position[row] += count
            done += count
        return {row: self._outputs(np.array([row]))}

    def _in_waves(self, prompts: Sequence[_Prompt]) -> dict[int, dict[str, Array]]:
        """Many columns of several rows, the next one of each in every run; the answers are those of the last ones."""
        answers = {}
        pending = {prompt.row: (prompt.sampler, *prompt.laid_out()) for prompt in prompts}
        column = 0
        while pending:
            start, stop = min(pending), max(pending) + 1
            self._rest(start, stop)
            for row, (sampler, columns, embeddings) in pending.items():
                self._take_part(np.array([row]), sampler)
                self._columns[row], self._embeddings[row] = columns[column], embeddings[column]
            self._run(start, stop, self._columns[start:stop], self._embeddings[start:stop])
            column += 1
            for row in pending:
                self._position[row] += 1
            for row in [row for row, (_, columns, _) in pending.items() if len(columns) == column]:
                answers[row] = self._outputs(np.array([row]))
                del pending[row]
        return answers

    def _rest(self, start: int, stop: int) -> None:
        """Rows start..stop-1 take no part in the next run."""
        feeds = self._session.feeds
        feeds["noise"][start:stop] = IDLE_NOISE
        feeds["top_k"][start:stop] = IDLE_TOP_K
        feeds["temperature"][start:stop] = IDLE_TEMPERATURE

    def _take_part(self, rows: Array, samplers: Samplers) -> None:
        """Rows [N] take part in the next run."""
        feeds = self._session.feeds
        feeds["noise"][rows] = samplers.noise(Stream.TEXT, (1,))
        feeds["top_k"][rows] = samplers.ranks(self._text_card)
        feeds["temperature"][rows] = samplers.temperature

    def _run(self, start: int, stop: int, columns: Array, embeddings: Array) -> None:
        dynamic = {"columns": columns, "embeddings": embeddings}
        self._session.run(start, stop, {name: np.ascontiguousarray(array) for name, array in dynamic.items()})

    def _outputs(self, rows: Array) -> dict[str, Array]:
        results = self._session.results
        return {"hidden": results["hidden"][rows], "text_token": results["text_token"][rows][:, None]}
