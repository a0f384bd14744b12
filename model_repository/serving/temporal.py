"""`temporal` at run time: steps of many rows together, prefills row by row, keys and values in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from model_repository.serving.noise import Stream
from model_repository.serving.place import ExecutionTarget, open_session
from model_repository.serving.prefix import FedPrefix, Prefix, Prefixes, most_columns
from model_repository.serving.row_request import Array, BadInputError, BatchResult, RowRequest, check, split
from model_repository.serving.sampler import IDLE_NOISE, IDLE_TEMPERATURE, IDLE_TOP_K, Samplers
from model_repository.serving.session import row_ranges, warm_up
from model_repository.serving.slots import Slots

PREFILL_CHUNK = 128
"""Columns of a prompt per graph run: enough to be bound by arithmetic, few enough for small intermediate tensors (the
scores of attention alone are chunk x window for each head). A static session takes one of every row, see
`StepAttention`."""

TILE = 8
"""Rows that ONNX Runtime's own quantized matmuls take together: a chunk of several of them, but not a single column, is
rounded the same wherever the chunk ends."""


@dataclass(frozen=True, eq=False)
class TemporalRequest:
    """columns [N, S, 17] int64 behind embeddings [N, E, dim] float32, the prefix they belong to, and how to sample."""

    rows: Array
    columns: Array
    embeddings: Array
    prefix: Prefix | None
    samplers: Samplers

    @property
    def is_step(self) -> bool:
        """Whether it is a single column of each row."""
        return self.columns.shape[1] == 1 and not self.embeddings.shape[1]

    def prompt(self) -> tuple[Array, Array]:
        """Inputs of the graph for a request of one row: columns [E + S, 17] and embeddings [E + S, dim]."""
        first, dim = self.embeddings.shape[1:]
        columns = np.full((first + self.columns.shape[1], 17), -1, np.int64)
        columns[first:] = self.columns[0]
        embeddings = np.zeros((len(columns), dim), np.float32)
        embeddings[:first] = self.embeddings[0]
        return columns, embeddings


class TemporalModel:
    """Rows of conversations at their own positions.

    A row's inputs: columns [S, 17] int64; embeddings [E, dim] float32 of E columns that come before them; sampler
    [3] int64 (seed, index of the column to sample, top_k); temperature [1] float32. E + S = 1 is a step, more a
    prefill. Outputs, for the last column: hidden [dim] float32 and text_token [1] int64.

    With a `prefix` a request is about the prompt of its conversation. The column right after the prefix is a step if
    the prefix is kept, which is then copied into the row; else nothing is done. Columns of the prefix are run, piece by
    piece, and kept when the prefix is complete. Where no step was done, the only output is progress [2] int64: columns
    of the prefix that are in place, and microseconds that the request took.
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
        self.slots = Slots(self._session)
        self._text_card = text_card
        self._card = card
        self._cards = np.array([text_card + 1] + 16 * [card + 1], np.uint64)
        self._window = window
        hidden = self._session.results["hidden"]
        self._dim = int(hidden.shape[1])
        self._prefixes = Prefixes(self._session, most_columns(window), window)
        self._columns = np.zeros((slots, 1, 17), np.int64)
        self._embeddings = np.zeros((slots, 1, self._dim), np.float32)
        self._no_embeddings = np.zeros((slots, 1, self._dim), np.float32)

    def warm_up(self) -> None:
        """Run once whatever is slow the first time. Rows need not be clean afterwards: a START cleans them."""
        none = self._no_embeddings
        self._rest(0, len(none))
        warm_up(self._session, lambda size: self._run(0, size, self._columns[:size], none[:size]))

    def parse(self, request: RowRequest) -> TemporalRequest:
        """See `Model.parse`."""
        rows, inputs = request.rows, request.inputs
        columns = inputs["columns"]
        check(columns, "columns", np.int64, (-1, 17))
        if columns.size and not (columns.view(np.uint64) < self._cards).all():
            check(columns[..., 0], "columns[:, 0]", np.int64, (-1,), self._text_card + 1)
            check(columns[..., 1:], "columns[:, 1:]", np.int64, (-1, 16), self._card + 1)
        embeddings = inputs.get("embeddings", self._no_embeddings[:1, :0])
        check(embeddings, "embeddings", np.float32, (-1, self._dim))
        if not np.isfinite(embeddings).all():
            raise BadInputError("embeddings: values must be finite")
        count = columns.shape[1] + embeddings.shape[1]
        if not count:
            raise BadInputError("columns: expected at least one column")
        if count > 1 and len(rows) > 1:
            raise BadInputError(f"columns: expected one column of each of {len(rows)} rows, got {count}")
        return TemporalRequest(rows, columns, embeddings, Prefix.of(inputs), Samplers.of(inputs))

    def run(self, requests: Sequence[TemporalRequest]) -> list[BatchResult]:
        """See `Model.run`."""
        results: dict[int, BatchResult] = {}
        steps: list[int] = []
        prompts: list[int] = []
        fed: dict[int, FedPrefix] = {}
        for index, request in enumerate(requests):
            self.slots.clean(request.rows)
            prefix = request.prefix
            try:
                if prefix is None:
                    (steps if request.is_step else prompts).append(index)
                elif prefix.at < prefix.columns:
                    fed[index] = self._continued(request, prefix)
                    prompts.append(index)
                elif self._restore(request, prefix):
                    (steps if request.is_step else prompts).append(index)
                else:
                    results[index] = self._progress(request, 0.0)
            except BadInputError as error:
                results[index] = error
        for group in [prompts] if self._session.static else [[index] for index in prompts]:
            began = perf_counter()
            prompted = self._feed([requests[index] for index in group])
            for index, result in zip(group, prompted, strict=True):
                results[index] = result
                if index in fed:
                    self._fed(requests[index], fed[index])
                    results[index] = self._progress(requests[index], perf_counter() - began)
        if steps:
            results |= zip(steps, self._step([requests[index] for index in steps]), strict=True)
        return [results[index] for index in range(len(requests))]

    def _restore(self, request: TemporalRequest, prefix: Prefix) -> bool:
        """Whether the prefix before a request's column is kept, and now in place."""
        columns = self._prefixes.restore(int(request.rows[0]), prefix)
        if columns is None:
            self.slots.advance(request.rows, 0)
            return False
        self.slots.position[request.rows] = columns
        return True

    def _continued(self, request: TemporalRequest, prefix: Prefix) -> FedPrefix:
        """The row's prefix with the request's columns. Raises `BadInputError` unless they are the next ones."""
        row = int(request.rows[0])
        fed = self.slots.fed.get(row, FedPrefix())
        if fed.columns != self.slots.position[row]:
            raise BadInputError("prefix: expected a conversation that began with it")
        return fed.after(prefix, request.embeddings[0], request.columns[0])

    def _fed(self, request: TemporalRequest, fed: FedPrefix) -> None:
        """The columns of a prefix are in place; keep it if it is complete."""
        row, prefix = int(request.rows[0]), request.prefix
        if prefix is not None and fed.columns == prefix.columns:
            self.slots.fed.pop(row, None)
            self._prefixes.keep(row, prefix)
        else:
            self.slots.fed[row] = fed

    def _progress(self, request: TemporalRequest, seconds: float) -> dict[str, Array]:
        return {"progress": np.array([[self.slots.position[request.rows[0]], round(seconds * 1e6)]], np.int64)}

    def _feed(self, requests: Sequence[TemporalRequest]) -> list[BatchResult]:
        """Run the columns of one row, or those of several if the session takes them one by one."""
        return self._in_waves(requests) if self._session.static else [self._in_chunks(*requests)]

    def _step(self, requests: Sequence[TemporalRequest]) -> list[BatchResult]:
        """Run one column of each of several rows."""
        rows = np.concatenate([request.rows for request in requests])
        self._columns[rows] = np.concatenate([request.columns for request in requests])
        ranges = row_ranges(sorted(rows.tolist()), self._session.max_gap)
        for start, stop in ranges:
            self._rest(start, stop)
        self._take_part(rows, Samplers.merged([request.samplers for request in requests]))
        for start, stop in ranges:
            self._run(start, stop, self._columns[start:stop], self._no_embeddings[start:stop])
        self.slots.advance(rows, 1)
        return split(requests, self._outputs(rows))

    def _in_chunks(self, request: TemporalRequest) -> BatchResult:
        """Run many columns of one row, in chunks that do not wrap around the ring; past its end, one by one."""
        rows, (columns, embeddings) = request.rows, request.prompt()
        row = int(rows[0])
        self._take_part(rows, request.samplers)
        done = 0
        while done < len(columns):
            room = self._window - int(self.slots.position[row])
            left = len(columns) - done
            count = max(1, min(left, PREFILL_CHUNK - TILE if left == PREFILL_CHUNK + 1 else PREFILL_CHUNK, room))
            chunk = slice(done, done + count)
            self._run(row, row + 1, columns[None, chunk], embeddings[None, chunk])
            self.slots.advance(rows, count)
            done += count
        return self._outputs(rows)

    def _in_waves(self, requests: Sequence[TemporalRequest]) -> list[BatchResult]:
        """Run many columns of several rows, the next one of each in every run."""
        results: dict[int, BatchResult] = {}
        pending = {int(request.rows[0]): (request, *request.prompt()) for request in requests}
        column = 0
        while pending:
            start, stop = min(pending), max(pending) + 1
            self._rest(start, stop)
            for row, (request, columns, embeddings) in pending.items():
                self._take_part(request.rows, request.samplers)
                self._columns[row], self._embeddings[row] = columns[column], embeddings[column]
            self._run(start, stop, self._columns[start:stop], self._embeddings[start:stop])
            column += 1
            self.slots.advance(np.array(list(pending)), 1)
            for row in [row for row, (_, columns, _) in pending.items() if len(columns) == column]:
                results[row] = self._outputs(np.array([row]))
                del pending[row]
        return [results[int(request.rows[0])] for request in requests]

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
