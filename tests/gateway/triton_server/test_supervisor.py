from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from gateway.triton_server import TritonError, TritonServer, TritonSupervisor
from gateway.triton_server import supervisor as supervisor_module
from gateway.triton_server.probe import is_ready


def kill_tritonserver(server: TritonServer) -> None:
    psutil.Process(server._guard.pid).children()[0].kill()


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


@pytest.fixture
def supervisor(models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TritonSupervisor]:
    monkeypatch.setattr(supervisor_module, "FIRST_DELAY_S", 0.05)
    supervisor = TritonSupervisor(TritonServer(models))
    yield supervisor
    supervisor.stop()


def ready(supervisor: TritonSupervisor, restarts: int) -> bool:
    return supervisor.restarts == restarts and is_ready(supervisor.server.http_url)


def test_a_dead_server_is_restarted_on_the_same_port(supervisor: TritonSupervisor) -> None:
    supervisor.start()
    url = supervisor.server.http_url
    for restarts in (1, 2):
        kill_tritonserver(supervisor.server)
        assert until(lambda restarts=restarts: ready(supervisor, restarts))
        assert supervisor.server.http_url == url


def test_the_delay_doubles_up_to_its_limit(supervisor: TritonSupervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "LONGEST_DELAY_S", 0.2)
    supervisor.start()
    delays: list[float] = []
    wait = supervisor._stopping.wait
    monkeypatch.setattr(supervisor._stopping, "wait", lambda seconds: delays.append(seconds) or wait(seconds))

    def fail(*_: object, **__: object) -> None:
        raise TritonError("still broken")

    monkeypatch.setattr(supervisor.server, "start", fail)
    kill_tritonserver(supervisor.server)
    assert until(lambda: len(delays) >= 4)
    assert delays[:4] == [0.05, 0.1, 0.2, 0.2]


@pytest.mark.parametrize("error", [TritonError("still broken"), OSError(28, "No space left on device")])
def test_a_failed_restart_is_retried(
    supervisor: TritonSupervisor, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    supervisor.start()
    start, failing = supervisor.server.start, iter([True, True, False])

    def fail_twice(**given: object) -> None:
        if next(failing):
            raise error
        start(**given)

    monkeypatch.setattr(supervisor.server, "start", fail_twice)
    kill_tritonserver(supervisor.server)
    assert until(lambda: ready(supervisor, 3))


def test_stop_during_the_delay_returns_at_once(
    supervisor: TritonSupervisor, monkeypatch: pytest.MonkeyPatch, gone: Callable[[TritonServer], list[str]]
) -> None:
    monkeypatch.setattr(supervisor_module, "FIRST_DELAY_S", 30.0)
    supervisor.start()
    kill_tritonserver(supervisor.server)
    assert until(lambda: not supervisor.server.alive())
    began = time.monotonic()
    supervisor.stop()
    assert time.monotonic() - began < 2
    assert gone(supervisor.server) == []
