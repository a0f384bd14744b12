"""With `accept_when_full` off, both OpenAI APIs reserve a slot before the upgrade; it lapses if no session starts."""

from __future__ import annotations

import asyncio
import json
from time import perf_counter

import pytest
from websockets.exceptions import InvalidStatus

from tests.gateway.openai.conftest import PATH, REALTIME_PATH, Serve, Server, call

PATHS = [PATH, REALTIME_PATH]


async def refused(server: Server, path: str) -> None:
    """Check that the upgrade is refused at once, because every slot is taken."""
    began = perf_counter()
    with pytest.raises(InvalidStatus) as caught:
        await server.connect(path)
    assert perf_counter() - began < 0.5
    response = caught.value.response
    assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
    assert response.body is not None
    assert json.loads(response.body)["error"]["code"] == "server_overloaded"


@pytest.mark.parametrize("path", PATHS)
async def test_a_full_server_answers_503_before_the_upgrade(serve: Serve, path: str) -> None:
    async with serve(slots=1, accept_when_full=False) as server:
        async with server.connect(path):
            assert server.runtime.admission.taken == 1
            await refused(server, path)
        await server.until_free()
        async with server.connect(path):
            assert server.runtime.admission.taken == 1
        await server.until_free()


async def test_a_session_takes_the_reserved_slot_over(serve: Serve) -> None:
    async with serve(slots=1, accept_when_full=False) as server:
        async with call(server) as caller:
            await caller.start()
            assert server.runtime.admission.taken == 1
            await refused(server, PATH)
            await caller.close()
        await server.until_free()


@pytest.mark.parametrize("path", PATHS)
async def test_a_client_that_starts_no_session_holds_no_slot_for_long(serve: Serve, path: str) -> None:
    async with serve(slots=1, accept_when_full=False, handshake_seconds=0.1) as server, server.connect(path):
        async with asyncio.timeout(2):
            while server.runtime.admission.taken:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_a_late_start_takes_a_slot_if_one_is_free(serve: Serve) -> None:
    async with serve(slots=1, accept_when_full=False, handshake_seconds=0.1) as server:
        async with call(server) as first, asyncio.timeout(10):
            while server.runtime.admission.taken:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            async with call(server) as second:
                await second.start()
                await first.send("session.start", session={"model": "gpt-live-1"})
                (event,) = await first.until_closed()
                assert (event["error"]["code"], first.code) == ("server_overloaded", 1013)
                await second.close()
        await server.until_free()
        async with call(server) as third:
            await asyncio.sleep(0.2)
            await third.start()
            await third.close()
        await server.until_free()


async def test_a_reserved_slot_is_free_before_the_refusal_of_a_start(serve: Serve) -> None:
    async with serve(slots=1, accept_when_full=False) as server:
        for _ in range(3):
            async with call(server) as caller:
                await caller.send("session.start", session={"voice": 1})
                await caller.until_closed()
                assert server.runtime.admission.taken == 0
