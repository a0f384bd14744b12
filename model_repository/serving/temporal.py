"""`temporal` at run time: steps of many rows together, prefills row by row, keys and values in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from model_repository.serving.execution_target import ExecutionTarget, open_session
from model_repository.serving.prefix import FedPrefix, Prefix, Prefixes, most_columns
from model_repository.serving.row_request import Array, BadInputError, BatchResult, RowRequest, check, split
from model_repository.serving.sampler import IDLE_NOISE, IDLE_TEMPERATURE, IDLE_TOP_K, Samplers, Stream
from model_repository.serving.session import row_ranges, warm_up
from model_repository.serving.slots import Slots

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
        max_top_k: int | None = None,
    ) -> None:
        """`max_top_k`: most text tokens to sample from, the whole vocabulary by default."""
        self.session = open_session(model, slots, device)
        self.slots = Slots(self.session)
        self._text_card = text_card
        self._max_top_k = max_top_k or text_card
        self._card = card
        self._cards = np.array([text_card + 1] + 16 * [card + 1], np.uint64)
        self._window = window
        hidden = self.session.results["hidden"]
        self._dim = int(hidden.shape[1])
        self._prefixes = Prefixes(self.session, most_columns(window), window)
        self._no_embeddings = np.zeros((1, 0, self._dim), np.float32)

    def warm_up(self) -> None:
        """Run once whatever is slow the first time. Rows need not be clean afterwards: a START cleans them."""
        self._rest()
        if self.session.padded:
            nothing = np.zeros((1, 17), np.int64), np.zeros((1, self._dim), np.float32)
            self.session.prefill(0, *nothing)
            self._rest()
        warm_up(self.session, lambda size: self.session.run(0, size))

    def parse(self, request: RowRequest) -> TemporalRequest:
        """See `Model.parse`."""
        rows, inputs = request.rows, request.inputs
        columns = inputs["columns"]
        check(columns, "columns", np.int64, (-1, 17))
        if columns.size and not (columns.view(np.uint64) < self._cards).all():
            check(columns[..., 0], "columns[:, 0]", np.int64, (-1,), self._text_card + 1)
            check(columns[..., 1:], "columns[:, 1:]", np.int64, (-1, 16), self._card + 1)
        embeddings = inputs.get("embeddings", self._no_embeddings)
        check(embeddings, "embeddings", np.float32, (-1, self._dim))
        if not np.isfinite(embeddings).all():
            raise BadInputError("embeddings: values must be finite")
        count = columns.shape[1] + embeddings.shape[1]
        if not count:
            raise BadInputError("columns: expected at least one column")
        if count > 1 and len(rows) > 1:
            raise BadInputError(f"columns: expected one column of each of {len(rows)} rows, got {count}")
        samplers = Samplers.of(inputs)
        if self._max_top_k < self._text_card and (most := samplers.ranks(self._text_card).max()) > self._max_top_k:
            raise BadInputError(f"sampler: top_k must be in 1..{self._max_top_k} on this device, got {most}")
        return TemporalRequest(rows, columns, embeddings, Prefix.of(inputs), samplers)

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
        for index in prompts:
            began = perf_counter()
            results[index] = self._prefill(requests[index], needs_outputs=index not in fed)
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

    def _step(self, requests: Sequence[TemporalRequest]) -> list[BatchResult]:
        """Run one column of each of several rows."""
        rows = np.concatenate([request.rows for request in requests])
        self._rest()
        self._take_part(rows, Samplers.merged([request.samplers for request in requests]))
        self.session.feeds["columns"][rows] = np.concatenate([request.columns for request in requests])
        for start, stop in row_ranges(sorted(rows.tolist()), self.session.max_gap):
            self.session.run(start, stop)
        self.slots.advance(rows, 1)
        return split(requests, self._outputs(rows))

    def _prefill(self, request: TemporalRequest, needs_outputs: bool) -> dict[str, Array]:
        """Run many columns of one row, in chunks that do not wrap around the ring; past its end, one by one."""
        session, rows, (columns, embeddings) = self.session, request.rows, request.prompt()
        row = int(rows[0])
        # The outputs of a padded run are not those of the last column.
        in_chunks = len(columns) - (session.padded and needs_outputs)
        done = 0
        while done < len(columns):
            self._rest()
            self._take_part(rows, request.samplers)
            count = self._chunk(in_chunks - done, self._window - int(self.slots.position[row]))
            chunk = columns[done : done + count], embeddings[done : done + count]
            if count == 1:
                session.feeds["columns"][row], session.feeds["embeddings"][row] = chunk
                session.run(row, row + 1, embedded=True)
            else:
                session.prefill(row, *chunk)
            self.slots.advance(rows, count)
            done += count
        return self._outputs(rows)

    def _chunk(self, left: int, room: int) -> int:
        """How many of `left` columns the next run has, where `room` slots of the ring are not filled yet.

        Not a single one, if that can be avoided: it is rounded differently.
        """
        session = self.session
        if session.padded and room < session.chunk:
            return 1
        longest = session.chunk - TILE if left == session.chunk + 1 else session.chunk
        return max(1, min(left, longest, room))

    def _rest(self) -> None:
        """No row takes part in the next run: attention reads one slot of each that is run along."""
        feeds = self.session.feeds
        feeds["filled"][:] = 1
        feeds["noise"][:] = IDLE_NOISE
        feeds["top_k"][:] = IDLE_TOP_K
        feeds["temperature"][:] = IDLE_TEMPERATURE

    def _take_part(self, rows: Array, samplers: Samplers) -> None:
        """Rows [N] take part in the next run, with one column."""
        feeds = self.session.feeds
        feeds["filled"][rows] = np.minimum(self.slots.position[rows] + 1, self._window)
        feeds["noise"][rows] = samplers.noise(Stream.TEXT, (1,))
        feeds["top_k"][rows] = samplers.ranks(self._text_card)
        feeds["temperature"][rows] = samplers.temperature

    def _outputs(self, rows: Array) -> dict[str, Array]:
        results = self.session.results
        return {"hidden": results["hidden"][rows], "text_token": results["text_token"][rows][:, None]}
