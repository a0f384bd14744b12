"""Slots, each released once, and the budget of request bodies."""

from __future__ import annotations

import asyncio
import logging

import pytest

from gateway.errors import AtCapacity, Draining, TooManyForKey, UploadBudgetExceeded
from gateway.session.admission import Admission
from gateway.session.caller import Caller
from gateway.session.keys import KeyHolder
from gateway.telemetry.metrics import Api, Metrics
from tests.series import total

CALLER = Caller(Api.REST)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(slots=2)


@pytest.fixture
def admission(metrics: Metrics) -> Admission:
    return Admission(2, 7, metrics, upload_budget=100)


def refused(metrics: Metrics, reason: str) -> float:
    return total(metrics, "personaplex_refused_total", reason=reason)


def test_one_too_many_is_refused_with_a_time_to_come_back(admission: Admission):
    admission.acquire(CALLER)
    admission.acquire(CALLER)
    with pytest.raises(AtCapacity, match="all 2 conversations are taken") as found:
        admission.acquire(CALLER)
    assert found.value.retry_after == 7


def test_a_released_slot_can_be_taken_again(admission: Admission):
    admission.acquire(CALLER)
    admission.acquire(CALLER).release()
    admission.acquire(CALLER)
    assert admission.taken == 2


def test_a_slot_released_twice_counts_once(admission: Admission):
    held, released = admission.acquire(CALLER), admission.acquire(CALLER)
    released.release()
    released.release()
    assert admission.taken == 1
    held.release()
    assert admission.taken == 0


def test_the_metrics_follow(admission: Admission, metrics: Metrics):
    slot = admission.acquire(CALLER)
    admission.acquire(CALLER)
    with pytest.raises(AtCapacity):
        admission.acquire(CALLER)
    slot.release()
    assert metrics.registry.get_sample_value("personaplex_conversations_active") == 1
    assert total(metrics, "personaplex_refused_total", api="rest", reason="capacity") == 1
    assert refused(metrics, "capacity") == 1


def test_a_refusal_is_logged_with_its_api(admission: Admission, caplog: pytest.LogCaptureFixture):
    admission.draining = True
    with caplog.at_level(logging.INFO), pytest.raises(Draining):
        admission.acquire(Caller(Api.TWILIO))
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["twilio"]


def test_a_reserved_slot_returns_unless_a_conversation_claims_it(admission: Admission):
    with admission.reserve(CALLER):
        assert admission.taken == 1
    assert admission.taken == 0
    with admission.reserve(CALLER) as slot:
        slot.claim()
    assert admission.taken == 1
    slot.release()
    assert admission.taken == 0


async def test_a_reservation_lapses_and_is_claimed_anew(admission: Admission):
    with admission.reserve(CALLER, seconds=0.01) as slot:
        await asyncio.sleep(0.05)
        assert admission.taken == 0
        claimed = slot.claim()
        assert admission.taken == 1
    assert admission.taken == 1
    claimed.release()
    with admission.reserve(CALLER, seconds=0.01) as slot:
        await asyncio.sleep(0.05)
        admission.acquire(CALLER)
        admission.acquire(CALLER)
        with pytest.raises(AtCapacity):
            slot.claim()
    assert admission.taken == 2


async def test_a_claimed_reservation_does_not_lapse(admission: Admission):
    with admission.reserve(CALLER, seconds=0.01) as slot:
        slot.claim()
        await asyncio.sleep(0.05)
        assert admission.taken == 1
    assert admission.taken == 1


def test_an_upload_holds_a_slot_until_it_is_over(admission: Admission):
    with admission.upload(CALLER, turn_sessions=0):
        assert admission.taken == 1
    assert admission.taken == 0


def test_a_conversation_takes_the_slot_over(admission: Admission):
    with admission.upload(CALLER, turn_sessions=0) as upload:
        slot = upload.slot().claim()
    assert admission.taken == 1
    slot.release()
    assert admission.taken == 0


def test_a_full_or_draining_server_refuses_an_upload_at_once(admission: Admission, metrics: Metrics):
    admission.acquire(CALLER)
    admission.acquire(CALLER)
    with pytest.raises(AtCapacity), admission.upload(CALLER, turn_sessions=0):
        pass
    admission.draining = True
    with pytest.raises(Draining), admission.upload(CALLER, turn_sessions=1):
        pass
    assert (refused(metrics, "capacity"), refused(metrics, "draining")) == (1, 1)


def test_as_many_uploads_as_turn_sessions_are_admitted_without_a_slot(admission: Admission):
    admission.acquire(CALLER)
    admission.acquire(CALLER)
    with admission.upload(CALLER, turn_sessions=1) as upload:
        with pytest.raises(AtCapacity), admission.upload(CALLER, turn_sessions=1):
            pass
        with pytest.raises(AtCapacity):
            upload.slot()
        upload.release_slot()
    assert admission.taken == 2
    with admission.upload(CALLER, turn_sessions=1):
        pass


def test_a_key_that_holds_its_limit_is_refused(admission: Admission, metrics: Metrics):
    key = KeyHolder("ana", 7, conversations=1)
    caller = Caller(Api.LIVE, key)
    admission.acquire(caller)
    with pytest.raises(TooManyForKey), admission.upload(caller, turn_sessions=0):
        pass
    assert (refused(metrics, "key"), admission.taken, key.held) == (1, 1, 1)


def test_bytes_in_flight_are_bounded(admission: Admission, metrics: Metrics):
    with admission.upload(CALLER, 0) as first, admission.upload(CALLER, 0) as second:
        first.reserve(60)
        with pytest.raises(UploadBudgetExceeded) as found:
            second.reserve(41)
        assert found.value.retry_after == 7
        second.reserve(30)
        second.reserve(40)
        assert admission.upload_bytes == 100
        first.shrink(10)
        assert admission.upload_bytes == 50
        first.body_decoded()
        assert admission.upload_bytes == 40
    assert admission.upload_bytes == 0
    assert refused(metrics, "upload_budget") == 1


def test_nothing_is_lost_when_an_upload_fails(admission: Admission):
    with pytest.raises(ValueError, match="x"), admission.upload(CALLER, 0) as upload:  # noqa: PT012
        upload.reserve(50)
        raise ValueError("x")
    assert (admission.taken, admission.upload_bytes) == (0, 0)
