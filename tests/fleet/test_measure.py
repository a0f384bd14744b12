"""The measurement of refused calls finds what it is there to find."""

from __future__ import annotations

import shutil

import pytest

from loadtest.fleet.simulation import erlang_b
from tests.fleet.measure import WAYS, measure

PODS, SLOTS = 3, 2


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", WAYS)
async def test_only_pods_picked_at_random_refuse_while_a_slot_is_free(way: str):
    if way == "HAProxy" and shutil.which("haproxy") is None:
        pytest.skip("haproxy is not installed: .ci/haproxy")
    found = await measure(way, 0.9, PODS, SLOTS, calls=300, length=0.25)
    assert found.refused > 0
    assert (found.wrong > 0) == (way == "random")
    expected = erlang_b(SLOTS, found.offered / PODS) if way == "random" else erlang_b(PODS * SLOTS, found.offered)
    assert found.refused / found.calls == pytest.approx(expected, abs=0.1)
