"""Slots: as many as there are, each given back once."""

from __future__ import annotations

import pytest

from gateway.errors import AtCapacity
from gateway.session.admission import Admission
from gateway.telemetry.metrics import Metrics


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(slots=2)


@pytest.fixture
def admission(metrics: Metrics) -> Admission:
    return Admission(2, 7, metrics)


def test_one_too_many_is_refused_with_a_time_to_come_back(admission: Admission):
    admission.acquire()
    admission.acquire()
    with pytest.raises(AtCapacity, match="all 2 conversations are taken") as refused:
        admission.acquire()
    assert refused.value.retry_after == 7


def test_a_slot_given_back_can_be_taken_again(admission: Admission):
    admission.acquire()
    admission.acquire().release()
    admission.acquire()
    assert admission.taken == 2


def test_a_slot_given_back_twice_counts_once(admission: Admission):
    kept, given_back = admission.acquire(), admission.acquire()
    given_back.release()
    given_back.release()
    assert admission.taken == 1
    kept.release()
    assert admission.taken == 0


def test_the_figures_follow(admission: Admission, metrics: Metrics):
    slot = admission.acquire()
    admission.acquire()
    with pytest.raises(AtCapacity):
        admission.acquire()
    slot.release()
    assert metrics.registry.get_sample_value("personaplex_conversations_active") == 1
    assert metrics.registry.get_sample_value("personaplex_refused_total", {"reason": "capacity"}) == 1
