"""Valid requests that fail: each gets a problem, frees its slot, and does not affect the next request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from gateway.engine.fake import FakeBackend
from gateway.errors import EngineError
from tests.gateway.api.problems import problem

Ask = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("no_slot_is_lost")


@pytest.mark.parametrize("stream", [False, True])
async def test_conversations_beyond_the_slots_are_rejected_at_once(ask: Ask, engine: FakeBackend, stream: bool):
    engine.delay = 0.05
    wav = {"accept": "audio/wav"}
    running = [asyncio.create_task(ask(**wav)) for _ in range(2)]
    await asyncio.sleep(0.1)
    async with asyncio.timeout(0.1):
        answer = await ask(**wav, stream=stream)
    body = problem(answer, 503, "at-capacity")
    assert answer.headers["retry-after"] == "7"
    assert body["detail"] == "all 2 conversations are taken; try again in 7 s"
    assert [(await task).status_code for task in running] == [200, 200]
    engine.delay = 0.0
    assert (await ask()).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_an_unavailable_backend_is_a_503_and_recovers(ask: Ask, engine: FakeBackend, stream: bool):
    engine.down = True
    for _ in range(5):
        answer = await ask(accept="audio/wav", stream=stream)
        problem(answer, 503, "engine-unavailable")
        assert answer.headers["retry-after"] == "7"
    engine.down = False
    assert (await ask(accept="audio/wav", stream=stream)).status_code == 200


async def test_a_backend_that_fails_during_a_response_is_a_503(ask: Ask, engine: FakeBackend):
    engine.delay = 0.01
    task = asyncio.create_task(ask(max_steps=50))
    await asyncio.sleep(0.15)
    engine.down = True
    problem(await task, 503, "engine-unavailable")


async def test_a_failure_of_the_models_is_a_502(ask: Ask, engine: FakeBackend, monkeypatch: pytest.MonkeyPatch):
    async def fail(*_: object) -> None:
        raise EngineError("Triton failed (temporal): INTERNAL: out of memory")

    monkeypatch.setattr(engine, "open", fail)
    problem(await ask(), 502, "engine-error")


async def test_an_internal_error_is_a_500_without_traceback(
    ask: Ask, engine: FakeBackend, monkeypatch: pytest.MonkeyPatch
):
    async def fail(*_: object) -> None:
        raise ZeroDivisionError("the secret of the house")

    monkeypatch.setattr(engine, "open", fail)
    answer = await ask()
    problem(answer, 500, "internal-error")
    assert "secret" not in answer.text
