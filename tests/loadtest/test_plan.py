"""The parameters of a run, passed from one process to the next."""

from __future__ import annotations

from dataclasses import replace

import pytest

from loadtest.plan import Plan, shares
from loadtest.record import Api

PLAN = Plan("http://h:1", "h:2", "q.wav", "out.json", users=4, api_key="k")


def test_a_plan_round_trips_through_one_line():
    assert "\n" not in PLAN.to_json()
    assert Plan.from_json(PLAN.to_json()) == PLAN


def test_users_start_spread_over_one_frame_or_together():
    assert [PLAN.offset(user) for user in range(4)] == pytest.approx([0, 0.02, 0.04, 0.06])
    assert {replace(PLAN, phases="together").offset(user) for user in range(4)} == {0.0}


@pytest.mark.parametrize("users", [1, 2, 3, 4, 5, 32])
def test_mixed_shares_add_up_and_differ_by_one_at_most(users: int):
    found = shares("mixed", users)
    assert set(found) == set(Api)
    assert sum(found.values()) == users
    assert max(found.values()) - min(found.values()) <= 1


def test_one_api_gets_all_users():
    assert shares("websocket", 5) == {Api.WEBSOCKET: 5}
