"""The beginning of a conversation on its way to the temporal model: what the request's tensors say, and its pieces.

The model keeps prefixes by content: one that an earlier conversation began with need not be sent again. The digest is
SHA-256 over all embeddings, all columns and the number of embeddings; the model computes it from what it was fed too.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gateway.engine.backend import Floats, Tokens
from gateway.engine.triton.request import Tensor


@dataclass(frozen=True, eq=False)
class Prefix:
    """embeddings [E, dim] float32 of the first columns, then columns [S, 17] int64."""

    embeddings: Floats
    columns: Tokens

    @property
    def length(self) -> int:
        """Columns in all."""
        return len(self.embeddings) + len(self.columns)

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that no other content has."""
        whole = hashlib.sha256(_floats(self.embeddings))
        whole.update(_integers(self.columns))
        whole.update(np.int64(len(self.embeddings)).tobytes())
        return whole.digest()

    def mark(self, at: int) -> tuple[Tensor, bytes]:
        """The tensor `prefix` of a request whose first column is `at`."""
        numbers = np.array([at, self.length], np.int64).tobytes()
        return Tensor("prefix", "INT64", (6,)), numbers + self.digest

    def piece(self, start: int, stop: int) -> list[tuple[Tensor, bytes]]:
        """The tensors that say what columns start..stop-1 are."""
        given = len(self.embeddings)
        embeddings = self.embeddings[start:stop]
        columns = self.columns[max(start - given, 0) : max(stop - given, 0)]
        tensors = [(Tensor("columns", "INT64", columns.shape), _integers(columns)), self.mark(start)]
        if len(embeddings):
            tensors.append((Tensor("embeddings", "FP32", embeddings.shape), _floats(embeddings)))
        return tensors


def _floats(array: Floats) -> bytes:
    return np.ascontiguousarray(array, np.float32).tobytes()


def _integers(array: Tokens) -> bytes:
    return np.ascontiguousarray(array, np.int64).tobytes()
