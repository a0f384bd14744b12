"""Sessions of `/v1/converse` that are resumed over another connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.gateway.websocket.conftest import END, FRAME, Received, Server, receive_all, start
from tests.series import total

Noise = Callable[..., NDArray[np.float32]]
NEW = {"X-Resume-Token": "new"}
FORMAT = {"audio": {"format": "pcm_f32le"}}


def cut(client: ClientConnection) -> None:
    """Lose the connection without a close frame."""
    client.transport.abort()


async def begin(client: ClientConnection, **fields: Any) -> dict[str, Any]:
    """Start a session or resume it; return `ready`."""
    await client.send(start(**FORMAT, **fields))
    received = Received()
    while not received.of("ready"):
        message = await client.recv()
        assert isinstance(message, str), "expected `ready` first"
        received.messages.append(json.loads(message))
    return received.one("ready")


async def until_lost(server: Server) -> None:
    async with asyncio.timeout(10):
        while not total(server.runtime.metrics, "personaplex_connections_lost_total", api="converse"):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_client_resumes_its_session(serve: Callable[..., Any], noise: Noise) -> None:
    first, second = noise(6, seed=1), noise(6, seed=2)
    async with serve(slots=1, resume_seconds=10, live_speed=1) as server:
        async with server.connect(additional_headers=NEW) as client:
            ready = await begin(client, greedy=True)
            assert ready["index"] == 0
            assert ready["resume"]["seconds"] == 10
            await client.send(first.tobytes())
            before: list[bytes] = []
            while len(before) < 7:
                message = await client.recv()
                before += [message] if isinstance(message, bytes) else []
            cut(client)
        await until_lost(server)
        await asyncio.sleep(0.5)
        async with server.connect(additional_headers={"X-Resume-Token": ready["resume"]["token"]}) as client:
            again = await begin(client)
            for frame in second.reshape(-1, FRAME):
                await client.send(frame.tobytes())
                await asyncio.sleep(0.08)
            await client.send(END)
            received = await receive_all(client)
        assert received.code == 1000
        await server.until_free()
        gaps = round(total(server.runtime.metrics, "personaplex_gap_frames_total"))
        heard = np.concatenate([first, np.zeros(gaps * FRAME, np.float32), second])
        whole = await server.offline(heard, 13 + gaps, greedy=True)
    assert (again["conversation_id"], again["seed"]) == (ready["conversation_id"], ready["seed"])
    assert again["index"] == 7 + gaps
    assert again["missed_text"]
    samples = np.frombuffer(b"".join([*before, *received.audio]), "<f4")
    expected = np.delete(whole["audio"].reshape(-1, FRAME), np.s_[7 : again["index"]], axis=0)
    np.testing.assert_allclose(samples, expected.reshape(-1) / 32768, atol=1e-4)
    assert received.one("ended")["frames"] == 13 + gaps
    assert received.one("ended")["transcript"] == whole["transcript"]


async def test_a_page_offers_the_token_as_a_subprotocol(serve: Callable[..., Any]) -> None:
    async with serve(resume_seconds=10) as server:
        async with server.connect(subprotocols=["personaplex.resume.new"]) as client:
            token = (await begin(client))["resume"]["token"]
            cut(client)
        async with server.connect(subprotocols=["personaplex.v1", f"personaplex.resume.{token}"]) as client:
            await begin(client)
            await client.send(END)
            assert (await receive_all(client)).one("ended")["reason"] == "completed"
        await server.until_free()


async def test_the_old_connection_is_told(serve: Callable[..., Any], noise: Noise) -> None:
    async with serve(slots=1, resume_seconds=10) as server:
        async with server.connect(additional_headers=NEW) as old:
            ready = await begin(old)
            token = {"X-Resume-Token": ready["resume"]["token"]}
            async with server.connect(additional_headers=token) as client:
                await begin(client)
                received = await receive_all(old)
                await client.send(noise(2).tobytes())
                await client.send(END)
                assert (await receive_all(client)).one("ended")["reason"] == "completed"
        assert received.one("error")["code"] == "taken-over"
        assert received.code == 1008
        await server.until_free()


async def refusal(server: Server, token: str, **options: Any) -> tuple[str, int | None]:
    """Code of the error and of the close."""
    headers = {"X-Resume-Token": token, **options.pop("headers", {})}
    async with server.connect(additional_headers=headers) as client:
        # The server may have closed the connection already.
        with suppress(ConnectionClosed):
            await client.send(start(**FORMAT, **options))
        received = await receive_all(client)
    return received.one("error")["code"], received.code


async def test_refusals(serve: Callable[..., Any]) -> None:
    """Unknown, of another key, of another session's parameters; a refused attempt does not harm the session."""
    async with serve(resume_seconds=10, api_keys=["K", "L"]) as server:
        async with server.connect(additional_headers={**NEW, "X-API-Key": "K"}) as client:
            token = (await begin(client))["resume"]["token"]
            key = {"X-API-Key": "K"}
            assert await refusal(server, "none", headers=key) == ("unknown-conversation", 1008)
            assert await refusal(server, token, headers={"X-API-Key": "L"}) == ("unknown-conversation", 1008)
            assert await refusal(server, token) == ("unauthorized", 1008)
            assert await refusal(server, token, headers=key, seed=1) == ("invalid-request", 1007)
            assert await refusal(server, token, headers=key, voice="NATF0") == ("invalid-request", 1007)
            await client.send(END)
            assert (await receive_all(client)).one("ended")["reason"] == "completed"
        assert await refusal(server, token, headers=key) == ("unknown-conversation", 1008)
        await server.until_free()


async def test_an_expired_token_is_refused(serve: Callable[..., Any]) -> None:
    async with serve(resume_seconds=0.2) as server:
        async with server.connect(additional_headers=NEW) as client:
            token = (await begin(client))["resume"]["token"]
            cut(client)
        await server.until_free()
        assert await refusal(server, token) == ("unknown-conversation", 1008)


@pytest.mark.parametrize("accept_when_full", [True, False])
async def test_a_full_server_resumes_sessions(serve: Callable[..., Any], accept_when_full: bool) -> None:
    async with serve(slots=1, resume_seconds=10, accept_when_full=accept_when_full) as server:
        async with server.connect(additional_headers=NEW) as client:
            token = (await begin(client))["resume"]["token"]
            cut(client)
        await until_lost(server)
        if not accept_when_full:
            with pytest.raises(InvalidStatus):
                async with server.connect():
                    pass
        async with server.connect(additional_headers={"X-Resume-Token": token}) as client:
            await begin(client)
        # The client has closed the connection itself.
        await server.until_free()


@pytest.mark.parametrize(("settings", "headers"), [({}, NEW), ({"resume_seconds": 10}, {})])
async def test_off_by_default(serve: Callable[..., Any], settings: dict[str, Any], headers: dict[str, str]) -> None:
    async with serve(**settings) as server:
        async with server.connect(additional_headers=headers) as client:
            assert (await begin(client))["resume"] is None
            cut(client)
        await server.until_free()
