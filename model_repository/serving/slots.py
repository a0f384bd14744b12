"""The slots of a stateful model: which conversation has which row, and what has been run of it."""

from __future__ import annotations

import numpy as np

from model_repository.serving.prefix import FedPrefix
from model_repository.serving.row_request import Array, BadInputError
from model_repository.serving.session import Session


class Slots:
    """One slot per row of a session, as arrays [slots].

    position: steps that have been run, an input of the graph. fresh: the conversation has not been run successfully
    yet, so the row is cleaned before its next run. fed: what has been run of each row's prompt prefix.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._keys = np.zeros(session.slots, np.int64)
        self._taken = np.zeros(session.slots, np.bool_)
        self.position: Array = session.feeds["position"]
        self.fresh = np.zeros(session.slots, np.bool_)
        self.fed: dict[int, FedPrefix] = {}

    def begin(self, row: int, key: int = 0) -> None:
        """Give the row to a new conversation. `key`: a number that its requests must repeat."""
        self._keys[row] = key
        self._taken[row] = self.fresh[row] = True

    def end(self, row: int) -> None:
        """Free the row."""
        self._taken[row] = False

    def rows_of(self, members: Array) -> Array:
        """Return the rows of members [N, 2] (row, key). Raises `BadInputError` unless each conversation has its row."""
        rows, keys = members[:, 0], members[:, 1]
        known = (rows >= 0) & (rows < len(self._keys))
        valid = known & self._taken[rows * known] & (self._keys[rows * known] == keys)
        if not valid.all():
            index = int(valid.argmin())
            raise BadInputError(f"members[{index}]: row {rows[index]} is not, or no longer, that conversation's")
        if len(rows) > 1 and len(np.unique(rows)) != len(rows):
            raise BadInputError("members: a row is named twice")
        return rows

    def clean(self, rows: Array) -> None:
        """Clean those rows whose conversation is fresh: state, position and prefix."""
        for row in rows[self.fresh[rows]].tolist():
            self._session.reset(row)
            self.position[row] = 0
            self.fed.pop(row, None)

    def advance(self, rows: Array, steps: int) -> None:
        """Record a successful run of so many steps of each row."""
        self.position[rows] += steps
        self.fresh[rows] = False
