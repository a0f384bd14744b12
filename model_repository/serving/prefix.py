"""How conversations begin, kept by content: a persona's next call copies what its first one computed."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from model_repository.serving.row_request import Array, BadInputError, check
from model_repository.serving.session import Session


def most_columns(window: int) -> int:
    """How many columns are kept, of all prefixes together: PERSONAPLEX_PREFIX_COLUMNS, or as many as a row holds.

    By default they may take the memory of one more conversation's keys and values; 0 keeps none.
    """
    return int(os.environ.get("PERSONAPLEX_PREFIX_COLUMNS", window))


@dataclass(frozen=True)
class Prefix:
    """What a request's tensor `prefix` [6] int64 says.

    at: the first column that the request carries. columns: how many the conversation's prefix has. digest: their
    SHA-256, 32 bytes in the last four numbers; over all embeddings [E, dim] float32, all columns [S, 17] int64, and E
    as int64, in this order.
    """

    at: int
    columns: int
    digest: bytes

    @classmethod
    def of(cls, inputs: Mapping[str, Array]) -> Prefix | None:
        """None for a request without one; else that of its only row. Raises `BadInputError` where it cannot be."""
        if "prefix" not in inputs:
            return None
        given = inputs["prefix"]
        check(given, "prefix", np.int64, (6,))
        at, columns = given[0, :2].tolist()
        if not 0 <= at <= columns:
            raise BadInputError(f"prefix: expected a first column in 0..{columns}, got {at}")
        return cls(at, columns, given[0, 2:].tobytes())


class Prefixes:
    """The prefixes a model keeps, at most `limit` columns in all; of those asked for, the longest ago goes first.

    A prefix longer than `window` columns is not kept: its row has forgotten the first of them. What is kept is found
    by what was fed, not by what a client called it: one that miscounts harms itself alone.
    """

    def __init__(self, session: Session, limit: int, window: int) -> None:
        self._session = session
        self._position = session.feeds["position"]
        self._limit = limit
        self._longest = min(limit, window)
        self._kept: OrderedDict[bytes, tuple[int, dict[str, Array]]] = OrderedDict()
        self._fed: dict[int, _Fed] = {}
        self.columns = 0
        """Columns kept now."""

    def begin(self, row: int) -> None:
        """A row has a new tenant."""
        self._fed.pop(row, None)

    def recall(self, row: int, prefix: Prefix) -> bool:
        """Put a prefix into a row and move its position behind it; False if it is not kept."""
        if prefix.digest not in self._kept:
            return False
        self._kept.move_to_end(prefix.digest)
        columns, saved = self._kept[prefix.digest]
        self._session.restore(row, saved)
        self._position[row] = columns
        return True

    def expect(self, row: int, prefix: Prefix, embeddings: Array, columns: Array) -> None:
        """Raises `BadInputError` unless these may be the row's next columns: they continue its prefix, and if they
        complete it, it is what its digest says. Nothing has been fed yet.
        """
        position, count = int(self._position[row]), len(embeddings) + len(columns)
        if prefix.at != position:
            raise BadInputError(f"prefix: expected column {position} of this conversation, got {prefix.at}")
        if position and row not in self._fed:
            raise BadInputError("prefix: expected a conversation that began with it")
        if position + count > prefix.columns:
            raise BadInputError(f"prefix: expected {prefix.columns} columns in all, got {position + count}")
        fed = self._fed.get(row, _Fed())
        if position + count == prefix.columns and fed.with_next(embeddings, columns).digest() != prefix.digest:
            raise BadInputError("prefix: the columns are not those of its digest")

    def add(self, row: int, prefix: Prefix, embeddings: Array, columns: Array) -> None:
        """Columns that `expect` has accepted have been fed; if the prefix is complete now, keep it."""
        self._fed[row] = self._fed.get(row, _Fed()).with_next(embeddings, columns)
        if self._position[row] == prefix.columns:
            del self._fed[row]
            self._keep(row, prefix)

    def _keep(self, row: int, prefix: Prefix) -> None:
        if prefix.columns > self._longest or prefix.digest in self._kept:
            return
        while self.columns + prefix.columns > self._limit:
            _, (columns, _) = self._kept.popitem(last=False)
            self.columns -= columns
        self._kept[prefix.digest] = prefix.columns, self._session.saved(row, prefix.columns)
        self.columns += prefix.columns


class _Fed:
    """What has been fed of a row's prefix: its sum so far, and how many columns of it were embeddings."""

    def __init__(self) -> None:
        self._sum = hashlib.sha256()
        self._embeddings = 0

    def with_next(self, embeddings: Array, columns: Array) -> _Fed:
        """This and the columns that follow."""
        fed = _Fed()
        fed._sum = self._sum.copy()
        fed._embeddings = self._embeddings + len(embeddings)
        fed._sum.update(embeddings.tobytes())
        fed._sum.update(columns.tobytes())
        return fed

    def digest(self) -> bytes:
        whole = self._sum.copy()
        whole.update(np.int64(self._embeddings).tobytes())
        return whole.digest()
