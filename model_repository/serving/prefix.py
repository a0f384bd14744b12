"""A cache of prompt prefixes by content: a prompt that was run once is copied into the next conversation's row."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from model_repository.serving.row_request import Array, BadInputError, check
from model_repository.serving.session import Session


def most_columns(window: int) -> int:
    """Columns of all kept prefixes: PERSONAPLEX_PREFIX_COLUMNS, by default as many as a row holds; 0 keeps none."""
    return int(os.environ.get("PERSONAPLEX_PREFIX_COLUMNS", window))


@dataclass(frozen=True)
class Prefix:
    """A request's tensor `prefix` [6] int64.

    at: index of the first column in the request. columns: length of the conversation's prefix. digest: its SHA-256, 32
    bytes in the last four numbers, over all embeddings [E, dim] float32, all columns [S, 17] int64, and E as int64.
    """

    at: int
    columns: int
    digest: bytes

    @classmethod
    def of(cls, inputs: Mapping[str, Array]) -> Prefix | None:
        """None for a request without one; else that of its only row. Raises `BadInputError`."""
        if "prefix" not in inputs:
            return None
        given = inputs["prefix"]
        check(given, "prefix", np.int64, (6,))
        at, columns = given[0, :2].tolist()
        if not 0 <= at <= columns:
            raise BadInputError(f"prefix: expected a first column in 0..{columns}, got {at}")
        return cls(at, columns, given[0, 2:].tobytes())


class Prefixes:
    """A cache of at most `limit` columns of prefixes; the least recently used goes first.

    A prefix longer than `window` columns is not kept: its row no longer has the first of them. Prefixes are found by
    the digest of what was fed, whatever a client claims.
    """

    def __init__(self, session: Session, limit: int, window: int) -> None:
        self._session = session
        self._limit = limit
        self._longest = min(limit, window)
        self._kept: OrderedDict[bytes, tuple[int, Any]] = OrderedDict()
        self.columns = 0
        """Columns kept now."""

    def restore(self, row: int, prefix: Prefix) -> int | None:
        """Copy a prefix into a row; return its columns, or None if it is not kept."""
        if prefix.digest not in self._kept:
            return None
        self._kept.move_to_end(prefix.digest)
        columns, saved = self._kept[prefix.digest]
        self._session.restore(row, saved)
        return columns

    def keep(self, row: int, prefix: Prefix) -> None:
        """Copy the prefix that a row holds."""
        if prefix.columns > self._longest or prefix.digest in self._kept:
            return
        while self.columns + prefix.columns > self._limit:
            _, (columns, saved) = self._kept.popitem(last=False)
            self._session.discard(saved)
            self.columns -= columns
        saved = self._session.save(row, prefix.columns)
        if saved is not None:
            self._kept[prefix.digest] = prefix.columns, saved
            self.columns += prefix.columns


class FedPrefix:
    """What has been run of a row's prefix: columns, and their digest so far."""

    def __init__(self) -> None:
        self.columns = 0
        self._sum = hashlib.sha256()
        self._embeddings = 0

    def after(self, prefix: Prefix, embeddings: Array, columns: Array) -> FedPrefix:
        """This and the columns that follow. Raises `BadInputError` unless they continue `prefix`, and, if they complete
        it, have its digest.
        """
        if prefix.at != self.columns:
            raise BadInputError(f"prefix: expected column {self.columns} of this conversation, got {prefix.at}")
        fed = FedPrefix()
        fed.columns = self.columns + len(embeddings) + len(columns)
        if fed.columns > prefix.columns:
            raise BadInputError(f"prefix: expected {prefix.columns} columns in all, got {fed.columns}")
        fed._sum = self._sum.copy()
        fed._embeddings = self._embeddings + len(embeddings)
        fed._sum.update(embeddings.tobytes())
        fed._sum.update(columns.tobytes())
        if fed.columns == prefix.columns and fed._digest() != prefix.digest:
            raise BadInputError("prefix: the columns are not those of its digest")
        return fed

    def _digest(self) -> bytes:
        whole = self._sum.copy()
        whole.update(np.int64(self._embeddings).tobytes())
        return whole.digest()
