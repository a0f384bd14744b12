"""Who may come in: as many conversations as the models have rows, and nobody waits."""

from __future__ import annotations

from gateway.errors import AtCapacity
from gateway.metrics import Metrics


class Admission:
    """Counts slots. Triton itself would let a conversation beyond its rows wait silently, without end."""

    def __init__(self, slots: int, retry_after: int, metrics: Metrics) -> None:
        self.slots = slots
        self.taken = 0
        self._retry_after = retry_after
        self._metrics = metrics

    def acquire(self) -> Slot:
        """A slot to be released later. Raises AtCapacity at once if there is none."""
        if self.taken >= self.slots:
            self._metrics.refused.labels("capacity").inc()
            raise AtCapacity(self.slots, self._retry_after)
        self._count(+1)
        return Slot(self)

    def _count(self, change: int) -> None:
        self.taken += change
        self._metrics.active.set(self.taken)


class Slot:
    """One conversation's place."""

    def __init__(self, admission: Admission) -> None:
        self._admission: Admission | None = admission

    def release(self) -> None:
        """Give it back; a second time does nothing."""
        if self._admission is not None:
            self._admission._count(-1)
            self._admission = None
