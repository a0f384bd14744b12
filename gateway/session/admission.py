"""Admission: slots for conversations, and the budget of request bodies in flight.

Every API passes a request through the same gate, in this order: authentication (`gateway.session.keys`), draining and
capacity, body budget, work. Nothing of a body is read before the first two, and a body is not decoded before the third.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from gateway.errors import AtCapacity, Draining, TooManyForKey, TryLater, UploadBudgetExceeded
from gateway.session.caller import Caller
from gateway.session.keys import KeyHolder
from gateway.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)


class Admission:
    """Counts slots and bytes. Triton would let a conversation beyond its rows wait without a message."""

    def __init__(self, slots: int, retry_after: int, metrics: Metrics, upload_budget: int = 2**27) -> None:
        """`upload_budget`: bytes of request bodies in flight, over all requests."""
        self.slots = slots
        self.taken = 0
        self.draining = False
        self.upload_bytes = 0
        """Bytes of request bodies in flight."""
        self.empty = asyncio.Event()
        """Set while no slot is taken."""
        self.empty.set()
        self._upload_budget = upload_budget
        self._uploads_without_slot: Counter[KeyHolder | None] = Counter()
        self._retry_after = retry_after
        self._metrics = metrics

    def acquire(self, caller: Caller) -> Slot:
        """Take a slot, counted for the caller's key too. Raises Draining, AtCapacity or TooManyForKey."""
        try:
            return self._acquire(caller)
        except TryLater as error:
            self.refuse(caller, error)
            raise

    @contextmanager
    def reserve(self, caller: Caller, seconds: float | None = None) -> Iterator[Slot]:
        """Reserve a slot for a call before it is accepted; release it on exit unless a conversation has claimed it.

        `seconds`: after which the reservation lapses; None for no limit. Raises what `acquire` raises.
        """
        slot = self.acquire(caller)
        lapse = None if seconds is None else asyncio.get_running_loop().call_later(seconds, slot.cancel)
        try:
            yield slot
        finally:
            if lapse is not None:
                lapse.cancel()
            slot.cancel()

    @contextmanager
    def upload(self, caller: Caller, turn_sessions: int) -> Iterator[Upload]:
        """Admit a request whose body is still to be read. It holds a slot meanwhile, so that the body is not in vain.

        Without a free slot it is admitted nevertheless if it may be the next turn of a turn session, which has one.

        Args:
            caller: whose request it is.
            turn_sessions: turn sessions of the caller's key.

        Raises:
            Draining, AtCapacity, TooManyForKey: at once.
        """
        slot, refusal, key = None, None, caller.key
        try:
            slot = self._acquire(caller)
        except (AtCapacity, TooManyForKey) as error:
            if self._uploads_without_slot[key] >= turn_sessions:
                self.refuse(caller, error)
                raise
            refusal = error
        except TryLater as error:
            self.refuse(caller, error)
            raise
        self._uploads_without_slot[key] += slot is None
        upload = Upload(self, caller, slot, refusal)
        try:
            yield upload
        finally:
            upload.close()
            if slot is None:
                self._uploads_without_slot[key] -= 1
                self._uploads_without_slot += Counter()  # drop zeros

    def refuse(self, caller: Caller, error: TryLater) -> None:
        """Count and log a refusal."""
        self._metrics.of[caller.api].refused[REFUSALS[type(error)]].inc()
        logger.info("%s: a conversation was refused: %s", caller.api.value, error.message)

    def acquire_for_warmup(self) -> Slot | None:
        """Take a slot for the server itself, without a caller; None if there is none, which is no refusal."""
        if self.draining or self.taken >= self.slots:
            return None
        self._count(+1)
        return Slot(self, None)

    def _acquire(self, caller: Caller) -> Slot:
        if self.draining:
            raise Draining(self._retry_after)
        if self.taken >= self.slots:
            raise AtCapacity(self.slots, self._retry_after)
        if caller.key is not None:
            caller.key.take()
        self._count(+1)
        return Slot(self, caller)

    def _count(self, change: int) -> None:
        self.taken += change
        self._metrics.active.set(self.taken)
        if self.taken:
            self.empty.clear()
        else:
            self.empty.set()

    def _reserve_bytes(self, caller: Caller, count: int) -> None:
        if self.upload_bytes + count > self._upload_budget:
            error = UploadBudgetExceeded(self._upload_budget, self._retry_after)
            self.refuse(caller, error)
            raise error
        self.upload_bytes += count


REFUSALS: dict[type[TryLater], str] = {
    AtCapacity: "capacity",
    TooManyForKey: "key",
    Draining: "draining",
    UploadBudgetExceeded: "upload_budget",
}
"""Label of the metric by error."""


class Slot:
    """The place of one conversation."""

    def __init__(self, admission: Admission, caller: Caller | None) -> None:
        self._admission = admission
        self._caller = caller
        self._held = True
        self.claimed = False
        """Whether a conversation has taken over a reservation."""

    def claim(self) -> Slot:
        """Take over a reservation: the conversation releases the slot. If it has lapsed, return a new slot.

        Raises what `Admission.acquire` raises, if it has lapsed.
        """
        if not self._held and self._caller is not None:
            return self._admission.acquire(self._caller)
        self.claimed = True
        return self

    def cancel(self) -> None:
        """Return a reserved slot, unless a conversation has claimed it."""
        if not self.claimed:
            self.release()

    def release(self) -> None:
        """Return the slot; idempotent."""
        if self._held:
            self._held = False
            self._admission._count(-1)
            if self._caller is not None and self._caller.key is not None:
                self._caller.key.give_back()


class Upload:
    """One request's body, from before its first byte to after its decoding, and the slot reserved for its answer."""

    def __init__(self, admission: Admission, caller: Caller, slot: Slot | None, refusal: TryLater | None) -> None:
        self.resources = ExitStack()
        """Closed with the upload."""
        self._admission = admission
        self._caller = caller
        self._slot = slot
        self._refusal = refusal
        self._reserved = 0

    def reserve(self, total: int) -> None:
        """Raise the reservation to `total` bytes. Raises UploadBudgetExceeded."""
        if total > self._reserved:
            self._admission._reserve_bytes(self._caller, total - self._reserved)
            self._reserved = total

    def shrink(self, total: int) -> None:
        """Lower the reservation to `total` bytes."""
        if total < self._reserved:
            self._admission.upload_bytes -= self._reserved - total
            self._reserved = total

    def release_slot(self) -> None:
        """Return the reserved slot: the request belongs to a conversation that has one."""
        if self._slot is not None:
            self._slot.release()
            self._slot = None

    def slot(self) -> Slot:
        """The reserved slot, for a new conversation to claim. Raises AtCapacity or TooManyForKey if there is none."""
        if self._slot is None:
            assert self._refusal is not None  # noqa: S101
            self._admission.refuse(self._caller, self._refusal)
            raise self._refusal
        return self._slot

    def body_decoded(self) -> None:
        """Release the bytes."""
        self.shrink(0)
        self.resources.close()

    def close(self) -> None:
        """Release the bytes, and the slot unless a conversation has claimed it."""
        self.body_decoded()
        if self._slot is not None:
            self._slot.cancel()
