"""Access to both WebSocket APIs: API keys in headers and subprotocols, and origins of pages."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest

from tests.gateway.websocket.conftest import start
from tests.gateway.websocket.test_ends import PATHS, begin, error_and_close_code

KEY = "s3cret-key"


def basic(credentials: str) -> str:
    return base64.b64encode(credentials.encode()).decode()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "shown",
    [
        {"additional_headers": {"Authorization": f"Bearer {KEY}"}},
        {"additional_headers": {"X-API-Key": KEY}},
        {"additional_headers": {"api-key": KEY}},
        {"additional_headers": {"Authorization": f"Basic {basic(f'user:{KEY}')}"}},
        {"subprotocols": [f"personaplex.key.{KEY}"]},
        {"subprotocols": ["personaplex.v1", f"personaplex.key.{KEY}"]},
    ],
)
async def test_a_valid_key_is_accepted(serve: Callable[..., Any], path: str, shown: dict[str, Any]) -> None:
    async with serve(api_keys=["other", KEY]) as server:
        async with server.connect(path, **shown) as client:
            await begin(client)
        await server.until_free()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "shown",
    [
        {},
        {"additional_headers": {"Authorization": "Bearer wrong"}},
        {"additional_headers": {"Authorization": KEY}},
        {"additional_headers": {"Authorization": f"Basic {basic(f'{KEY}:wrong')}"}},
        {"additional_headers": {"Authorization": f"Basic {basic(KEY)}"}},
        {"additional_headers": {"Authorization": "Basic %%%"}},
        {"additional_headers": {"X-API-Key": ""}},
        {"subprotocols": ["personaplex.key.wrong"]},
        {"subprotocols": [KEY]},
    ],
)
async def test_other_keys_are_rejected(serve: Callable[..., Any], path: str, shown: dict[str, Any]) -> None:
    async with serve(api_keys=[KEY]) as server, server.connect(path, **shown) as client:
        error, code = await error_and_close_code(client)
        assert error is not None
        assert "API key" in error
        assert code == 1008
        assert server.engine.opened == 0


async def test_the_key_is_not_returned_beside_another_subprotocol(serve: Callable[..., Any]) -> None:
    offered = ["personaplex.v1", f"personaplex.key.{KEY}"]
    async with serve(api_keys=[KEY]) as server, server.connect(subprotocols=offered) as client:
        assert client.subprotocol == "personaplex.v1"


async def test_a_key_is_limited_to_its_number_of_sessions(serve: Callable[..., Any]) -> None:
    shown = {"additional_headers": {"X-API-Key": KEY}}
    async with serve(slots=4, api_keys=[KEY], key_conversations=1) as server:
        async with server.connect(**shown) as first:
            await begin(first)
            async with server.connect(**shown) as second:
                await second.send(start())
                error, code = await error_and_close_code(second)
            assert error is not None
            assert "this API key may hold 1" in error
            assert code == 1013
        await server.until_free()
        async with server.connect(**shown) as third:
            await begin(third)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("allowed", "origin", "may"),
    [
        ([], None, True),
        ([], "own", True),
        ([], "https://elsewhere.example", False),
        ([], "null", False),
        (["https://elsewhere.example"], "https://elsewhere.example", True),
        (["https://elsewhere.example"], "https://elsewhere.example.evil", False),
        (["*"], "https://elsewhere.example", True),
    ],
)
async def test_own_and_allowed_origins_are_accepted(
    serve: Callable[..., Any], path: str, allowed: list[str], origin: str | None, may: bool
) -> None:
    async with serve(allowed_origins=allowed) as server:
        if origin == "own":
            origin = server.url.replace("ws", "http", 1)
        async with server.connect(path, origin=origin) as client:
            if may:
                await begin(client)
            else:
                error, code = await error_and_close_code(client)
                assert error is not None
                assert "may not call here" in error
                assert code == 1008
        await server.until_free()
