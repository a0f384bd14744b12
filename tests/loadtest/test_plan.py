"""The parameters of a run: addresses, lengths of calls, and stages of users."""

from __future__ import annotations

import random
from statistics import fmean

import pytest

from gateway.cli.console import CommandError
from loadtest.plan import Plan, Stage, address, call_lengths, users_at

PLAN = Plan("http://h:1", "h:2", "q.wav", starts="spread", api_key="k")


def test_a_plan_round_trips_through_one_line():
    assert "\n" not in PLAN.to_json()
    assert Plan.from_json(PLAN.to_json()) == PLAN


@pytest.mark.parametrize(
    ("server", "grpc", "url"),
    [
        ("http://h:1", "h:2", "http://h:2"),
        ("https://h/voice", "h:2", "https://h:2"),
        ("https://h", "http://h:2", "http://h:2"),
        ("https://h", "", "https://h:8999"),
        ("http://[::1]:80", "", "http://[::1]:8999"),
    ],
)
def test_grpc_has_tls_if_the_server_has(server: str, grpc: str, url: str):
    assert Plan(server, grpc, "q.wav").grpc_url == url


def test_an_address_has_a_port_a_path_and_tls():
    plain, secure = address("http://[::1]:8998"), address("https://h.example/voice/")
    assert (plain.host, plain.port, plain.tls, plain.authority, plain.path) == ("::1", 8998, None, "[::1]:8998", "")
    assert (secure.host, secure.port, secure.authority, secure.path) == ("h.example", 443, "h.example", "/voice")
    assert secure.tls is not None


@pytest.mark.parametrize("server", ["", "h:1", "ws://h:1", "http://h:port", "http://h:0"])
def test_an_impossible_address_is_an_error(server: str):
    with pytest.raises(CommandError, match="expected http"):
        Plan(server, "", "q.wav").check()


def test_lengths_of_calls_are_fixed_uniform_or_exponential():
    draw = random.Random(1)
    assert {call_lengths("60", draw)() for _ in range(3)} == {60.0}
    uniform = [call_lengths("30-90", draw)() for _ in range(2000)]
    assert (min(uniform) >= 30, max(uniform) <= 90) == (True, True)
    assert fmean(uniform) == pytest.approx(60, rel=0.05)
    exponential = [call_lengths("~120", draw)() for _ in range(5000)]
    assert fmean(exponential) == pytest.approx(120, rel=0.05)
    assert sum(length > 120 for length in exponential) / 5000 == pytest.approx(0.368, abs=0.03)


@pytest.mark.parametrize("text", ["", "x", "0", "-5", "90-30", "30-", "~0", "nan", "~inf"])
def test_impossible_lengths_are_an_error(text: str):
    with pytest.raises(CommandError, match="--length: expected"):
        call_lengths(text, random.Random())


def test_users_go_up_and_down_in_stages():
    stages = Stage.parse("0-40:120,40:60,80:60,80-0:10")
    at = {seconds: users_at(stages, seconds) for seconds in (0, 60, 119.9, 120, 179, 180, 240, 245, 249.9, 250)}
    assert at == {0: 0, 60: 20, 119.9: 40, 120: 40, 179: 40, 180: 80, 240: 80, 245: 40, 249.9: 1, 250: None}


@pytest.mark.parametrize("text", ["", "10", "10:", "x:5", "10:0", "10:60,", "-5:60", "3:nan"])
def test_impossible_stages_are_an_error(text: str):
    with pytest.raises(ValueError, match="--stages: expected"):
        Stage.parse(text)
