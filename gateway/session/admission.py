"""Who may come in: as many conversations as the models have rows, and nobody waits."""

from __future__ import annotations

import asyncio

from gateway.errors import AtCapacity
from gateway.session.keys import KeyHolder
from gateway.telemetry.metrics import Metrics


class Admission:
    """Counts slots. Triton itself would let a conversation beyond its rows wait silently, without end."""

    def __init__(self, slots: int, retry_after: int, metrics: Metrics) -> None:
        self.slots = slots
        self.taken = 0
        self.upload_bytes = 0
        """Bytes of request bodies in flight."""
        self.empty = asyncio.Event()
        """Set while no slot is taken."""
        self.empty.set()
        self._retry_after = retry_after
        self._metrics = metrics

    def acquire(self, key: KeyHolder | None = None) -> Slot:
        """A slot to be released later, counted for `key` too. Raises AtCapacity or TooManyForKey at once."""
        if self.taken >= self.slots:
            self._metrics.refused.labels("capacity").inc()
            raise AtCapacity(self.slots, self._retry_after)
        if key is not None:
            key.take()
        self._count(+1)
        return Slot(self, key)

    def _count(self, change: int) -> None:
        self.taken += change
        self._metrics.active.set(self.taken)
        if self.taken:
            self.empty.clear()
        else:
            self.empty.set()


class Slot:
    """One conversation's place."""

    def __init__(self, admission: Admission, key: KeyHolder | None) -> None:
        self._admission: Admission | None = admission
        self._key = key

    def release(self) -> None:
        """Give it back; a second time does nothing."""
        if self._admission is not None:
            self._admission._count(-1)
            self._admission = None
            if self._key is not None:
                self._key.give_back()
