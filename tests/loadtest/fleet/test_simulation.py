"""The simulation of a fleet agrees with Erlang B where that holds, and an allocator never refuses wrongly."""

from __future__ import annotations

import pytest

from loadtest.fleet.simulation import (
    Attempts,
    Load,
    allocator,
    at_random,
    erlang_b,
    least_connections,
    round_robin,
    simulate,
)


def test_erlang_b_agrees_with_known_values():
    """Of a published table: 10 servers, 4.46 erlang, 1 %; 100 servers, 84.06 erlang, 1 %."""
    assert erlang_b(10, 4.461) == pytest.approx(0.01, rel=1e-3)
    assert erlang_b(100, 84.06) == pytest.approx(0.01, rel=1e-3)
    assert erlang_b(1, 1.0) == 0.5


@pytest.mark.parametrize("load", [0.7, 0.9, 1.2])
def test_random_balancing_refuses_as_single_pods_do(load: float):
    found = simulate(Load(4, 8, load, calls=60_000), at_random)
    assert (found.wrong + found.full) / found.calls == pytest.approx(erlang_b(8, load * 8), rel=0.08)


@pytest.mark.parametrize("attempts", [allocator, round_robin(4)])
def test_a_pool_refuses_as_one_large_pod_does(attempts: Attempts):
    found = simulate(Load(4, 8, 1.0, calls=60_000), attempts)
    assert found.wrong == 0
    assert found.full / found.calls == pytest.approx(erlang_b(32, 32), rel=0.08)


def test_least_connections_of_two_replicas_refuse_while_a_slot_is_free():
    of = Load(8, 2, 0.9, calls=20_000)
    assert simulate(of, least_connections(24), replicas=1).wrong == 0
    assert simulate(of, least_connections(24), replicas=2).wrong > 0
    assert simulate(of, round_robin(8), replicas=2).wrong == 0


def test_failures_end_calls_and_drains_refuse_none_of_a_pool():
    found = simulate(Load(8, 4, 0.5, failures=2, drains=5, calls=20_000), round_robin(8))
    assert found.cut > 0
    assert found.wrong == 0
    assert simulate(Load(8, 4, 0.5, drains=5, calls=20_000), round_robin(8)).cut == 0
