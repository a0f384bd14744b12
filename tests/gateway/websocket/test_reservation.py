"""With `accept_when_full` off, a slot is reserved before a WebSocket is accepted, and a refusal is an HTTP response."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from time import perf_counter
from typing import Any

import pytest
from websockets.datastructures import Headers
from websockets.exceptions import InvalidStatus

from tests.gateway.websocket.conftest import Server, receive_all, start
from tests.gateway.websocket.test_ends import begin, error_and_close_code

PATHS = ["/v1/converse", "/api/chat", "/gated/api/chat"]
KEY = {"additional_headers": {"X-API-Key": "K"}}


async def refusal(server: Server, path: str, **options: Any) -> tuple[int, Headers, dict[str, Any]]:
    """Status, headers and problem of the response to the opening handshake."""
    with pytest.raises(InvalidStatus) as refused:
        await server.connect(path, **options)
    response = refused.value.response
    assert response.body is not None
    return response.status_code, response.headers, json.loads(response.body)


@pytest.mark.parametrize("path", PATHS)
async def test_a_full_server_answers_503_before_the_upgrade(serve: Callable[..., Any], path: str):
    async with serve(slots=1, accept_when_full=False, retry_after=7) as server:
        async with server.connect(path) as first:
            await begin(first)
            took = []
            for _ in range(3):
                began = perf_counter()
                status, headers, problem = await refusal(server, path)
                took.append(perf_counter() - began)
            assert (status, headers["Retry-After"], problem["type"]) == (503, "7", "urn:personaplex:at-capacity")
            # The machine's own pauses are not the gateway's.
            assert min(took) < 0.1
        await server.until_free()
        async with server.connect(path) as third:
            await begin(third)
        await server.until_free()


@pytest.mark.parametrize("path", PATHS)
async def test_a_draining_server_answers_503(serve: Callable[..., Any], path: str):
    async with serve(accept_when_full=False) as server:
        server.runtime.admission.draining = True
        status, headers, problem = await refusal(server, path)
        assert (status, headers["Retry-After"], problem["type"]) == (503, "5", "urn:personaplex:draining")


async def test_a_key_that_holds_its_limit_gets_429(serve: Callable[..., Any]):
    """Another server would refuse it too."""
    async with serve(accept_when_full=False, api_keys=["K"], key_conversations=1) as server:
        async with server.connect("/v1/converse", **KEY) as first:
            await begin(first)
            status, headers, problem = await refusal(server, "/v1/converse", **KEY)
        assert (status, headers["Retry-After"], problem["type"]) == (429, "5", "urn:personaplex:too-many-for-key")
        await server.until_free()


async def test_a_caller_without_a_key_reserves_nothing(serve: Callable[..., Any]):
    async with serve(slots=1, accept_when_full=False, api_keys=["K"]) as server, server.connect() as client:
        error, code = await error_and_close_code(client)
        assert error is not None
        assert "API key" in error
        assert code == 1008
        assert server.runtime.admission.taken == 0


async def test_the_slot_is_held_from_the_upgrade_on(serve: Callable[..., Any]):
    async with serve(slots=1, accept_when_full=False) as server:
        async with server.connect("/v1/converse") as first:
            assert server.runtime.admission.taken == 1
            assert (await refusal(server, "/v1/converse"))[0] == 503
            await first.send(start())
            await first.recv()
            assert server.runtime.admission.taken == 1
        await server.until_free()


@pytest.mark.parametrize("message", [None, "no JSON", start(voice="nobody")])
async def test_a_reserved_slot_is_free_before_the_refusal_of_a_start(serve: Callable[..., Any], message: str | None):
    """`None`: no start message comes in time."""
    async with serve(slots=1, accept_when_full=False, handshake_seconds=0.2) as server:
        for _ in range(3):
            async with server.connect("/v1/converse") as client:
                if message is not None:
                    await client.send(message)
                received = await receive_all(client)
            assert received.one("error")
            assert server.runtime.admission.taken == 0


async def test_a_reserved_slot_is_free_once_the_client_has_gone(serve: Callable[..., Any]):
    async with serve(slots=1, accept_when_full=False) as server:
        client = await server.connect("/v1/converse")
        assert server.runtime.admission.taken == 1
        client.transport.abort()
        async with asyncio.timeout(2):
            await server.until_free()
