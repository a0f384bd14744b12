from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from gateway.triton_server import TritonError, TritonServer, TritonSupervisor
from gateway.triton_server import supervisor as keeper_module
from gateway.triton_server.probe import is_ready


def kill_tritonserver(server: TritonServer) -> None:
    psutil.Process(server._guard.pid).children()[0].kill()


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


@pytest.fixture
def keeper(models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TritonSupervisor]:
    monkeypatch.setattr(keeper_module, "FIRST_DELAY_S", 0.05)
    keeper = TritonSupervisor(TritonServer(models))
    yield keeper
    keeper.stop()


def ready(keeper: TritonSupervisor, restarts: int) -> bool:
    return keeper.restarts == restarts and is_ready(keeper.server.http_url)


def test_a_server_that_dies_is_started_again_on_the_same_port(keeper: TritonSupervisor) -> None:
    keeper.start()
    url = keeper.server.http_url
    for restarts in (1, 2):
        kill_tritonserver(keeper.server)
        assert until(lambda restarts=restarts: ready(keeper, restarts))
        assert keeper.server.http_url == url


def test_the_delay_between_failing_starts_doubles_up_to_its_bound(
    keeper: TritonSupervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "LONGEST_DELAY_S", 0.2)
    keeper.start()
    delays: list[float] = []
    wait = keeper._stopping.wait
    monkeypatch.setattr(keeper._stopping, "wait", lambda seconds: delays.append(seconds) or wait(seconds))

    def fail(*_: object, **__: object) -> None:
        raise TritonError("still broken")

    monkeypatch.setattr(keeper.server, "start", fail)
    kill_tritonserver(keeper.server)
    assert until(lambda: len(delays) >= 4)
    assert delays[:4] == [0.05, 0.1, 0.2, 0.2]


@pytest.mark.parametrize("trouble", [TritonError("still broken"), OSError(28, "No space left on device")])
def test_a_start_that_fails_is_tried_again(
    keeper: TritonSupervisor, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    keeper.start()
    start, failing = keeper.server.start, iter([True, True, False])

    def fail_twice(**given: object) -> None:
        if next(failing):
            raise trouble
        start(**given)

    monkeypatch.setattr(keeper.server, "start", fail_twice)
    kill_tritonserver(keeper.server)
    assert until(lambda: ready(keeper, 3))


def test_a_stop_while_the_server_is_down_ends_at_once(
    keeper: TritonSupervisor, monkeypatch: pytest.MonkeyPatch, gone: Callable[[TritonServer], list[str]]
) -> None:
    monkeypatch.setattr(keeper_module, "FIRST_DELAY_S", 30.0)
    keeper.start()
    kill_tritonserver(keeper.server)
    assert until(lambda: not keeper.server.alive())
    began = time.monotonic()
    keeper.stop()
    assert time.monotonic() - began < 2
    assert gone(keeper.server) == []
