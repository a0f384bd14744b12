"""The wait for a service to be ready."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gateway.app import create_app
from gateway.cli import service
from gateway.cli.console import CommandError
from gateway.cli.service import Service
from gateway.engine.fake import FakeBackend
from gateway.manifest import Manifest
from gateway.settings import Settings

WAIT_S = 0.5
PREFILL_S = 2.0


@pytest.fixture
def starting(monkeypatch: pytest.MonkeyPatch, models: Path, manifest: Manifest, engine: FakeBackend) -> Service:
    """A service with the fake engine, whose prefill takes longer than the service is waited for."""
    prefill = engine.prefill

    async def slow(*arguments: Any) -> Any:
        await asyncio.sleep(PREFILL_S)
        return await prefill(*arguments)

    monkeypatch.setattr(engine, "prefill", slow)
    monkeypatch.setattr(service, "POLL_S", 0.05)
    monkeypatch.setattr(service, "create_app", lambda settings, manifest: create_app(settings, engine, manifest))
    settings = Settings(models=models, port=0, grpc_port=-1, warm=("NATF0",), drain_seconds=0)
    return Service(settings, external_triton=True, wait=WAIT_S)


def test_a_prefill_may_take_longer_than_the_wait(starting: Service, engine: FakeBackend) -> None:
    with starting:
        assert starting.running()
        assert engine.prefills


def test_models_that_are_not_ready_in_time(starting: Service, engine: FakeBackend) -> None:
    engine.down = True
    with pytest.raises(CommandError, match=r"is not ready after 0\.5 s: "):
        starting.start()
    assert not starting.running()
