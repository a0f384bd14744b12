"""How Live sessions end, and how full, draining and failing servers refuse them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest

from tests.gateway.openai.conftest import DELTA, PATH, Caller, Serve, Server, call
from tests.gateway.websocket.conftest import FRAME
from tests.gateway.websocket.test_ends import framed, never_read_from
from tests.series import total


async def refused(server: Server, **options: Any) -> tuple[dict[str, Any], int | None]:
    """The only event before the close of a session that is refused, and the code of the close."""
    async with call(server, **options) as caller:
        await caller.send("session.start", event_id="s", session={"model": "gpt-live-1"})
        (event,) = await caller.until_closed()
        assert event["type"] == "error"
        assert event["error"]["client_event_id"] == "s"
        return event["error"], caller.code


def end(events: list[dict[str, Any]]) -> tuple[str | None, str]:
    """The code of the error before `session.closed`, and its reason."""
    errors = [event["error"]["code"] for event in events if event["type"] == "error"]
    assert len(errors) <= 1
    assert events[-1]["type"] == "session.closed"
    return (errors[0] if errors else None), events[-1]["reason"]


async def test_a_full_server_refuses_and_takes_the_next_caller_later(serve: Serve) -> None:
    async with serve(slots=1) as server:
        async with call(server) as first:
            await first.start()
            error, code = await refused(server)
            assert (error["type"], error["code"], code) == ("server_error", "server_overloaded", 1013)
        await server.until_free()
        assert total(server.runtime.metrics, "personaplex_refused_total", api="live", reason="capacity") == 1
        assert total(server.runtime.metrics, "personaplex_ended_total", api="live") == 1
        async with call(server) as third:
            await third.start()
            await third.close()
            # The slot is free before the close.
            assert server.runtime.admission.taken == 0


async def test_a_key_that_holds_its_limit_is_refused(serve: Serve) -> None:
    shown = {"additional_headers": {"Authorization": "Bearer K"}}
    async with serve(api_keys=["K"], key_conversations=1) as server, call(server, **shown) as first:
        await first.start()
        error, code = await refused(server, **shown)
        assert (error["code"], code) == ("rate_limit_exceeded", 1013)


async def test_a_draining_server_refuses(server: Server) -> None:
    server.runtime.admission.draining = True
    error, code = await refused(server)
    assert (error["code"], code) == ("server_shutting_down", 1012)


async def test_an_engine_that_is_down_refuses(server: Server) -> None:
    server.engine.down = True
    error, code = await refused(server)
    assert (error["type"], error["code"], code) == ("server_error", "server_error", 1011)
    server.engine.down = False


async def test_a_drain_ends_sessions(serve: Serve) -> None:
    async with serve(drain_seconds=0.2) as server, call(server) as caller:
        await caller.start()
        draining = asyncio.create_task(server.runtime.sessions.drain())
        events = await caller.until_closed()
        assert end(events) == ("server_shutting_down", "expired")
        assert caller.code == 1012
        await draining


async def test_a_failing_engine_ends_the_session(server: Server, caller: Caller) -> None:
    await caller.start()
    server.engine.down = True
    await caller.append(bytes(2 * FRAME))
    assert end(await caller.until_closed()) == ("server_error", "connection_lost")
    assert caller.code == 1011
    server.engine.down = False


async def test_no_audio_for_the_idle_time_ends_the_session_and_no_time_passes_meanwhile(serve: Serve) -> None:
    async with serve(idle_seconds=0.4) as server, call(server) as caller:
        await caller.start()
        await caller.append(bytes(4 * FRAME))
        events = await caller.until_closed()
        assert end(events) == ("session_expired", "expired")
        assert caller.code == 1000
        assert len(caller.of(DELTA)) == 3
        assert events[-1]["usage"] == {"seconds": 1}


async def test_the_longest_duration_ends_the_session_after_a_notice(serve: Serve) -> None:
    async with serve(max_call_seconds=0.6, warn_seconds=0.3) as server, call(server) as caller:
        await caller.start()
        events = await caller.until_closed()
    assert end(events) == ("session_expired", "expired")
    assert caller.code == 1000
    assert [event["code"] for event in events if event["type"] == "info"] == ["max_duration"]


async def test_a_message_beyond_the_limit_ends_the_session(serve: Serve) -> None:
    async with serve(max_message_bytes=10_000) as server, call(server) as caller:
        await caller.start()
        await caller.append(bytes(10_000))
        await caller.until_closed()
        assert caller.code == 1009
        await server.until_free()


async def test_a_client_that_does_not_read_is_disconnected_and_frees_the_slot(serve: Serve) -> None:
    start = framed(json.dumps({"type": "session.start", "session": {"model": "gpt-live-1"}}).encode(), 0x81)
    audio = framed(json.dumps({"type": "session.input_audio.append", "audio": "A" * 10_240}).encode(), 0x81)
    async with serve(output_frames=10) as server:
        sent = asyncio.create_task(asyncio.to_thread(never_read_from, server, PATH, [start, audio]))
        async with asyncio.timeout(30):
            while not server.runtime.admission.taken:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await server.until_free()
        await sent


async def test_audio_is_sent_no_faster_than_real_time(serve: Serve) -> None:
    async with serve(live_speed=1) as server, call(server) as caller:
        await caller.start()
        began = monotonic()
        await caller.append(bytes(2 * FRAME * 30))
        for number in range(16):
            await caller.until(DELTA)
            # Frame 0 comes with the start; two frames may be ahead, because clients send pieces of 100 ms.
            assert monotonic() - began > (number - 3) * 0.08


@pytest.mark.parametrize("when", ["connected", "started", "talking"])
async def test_a_client_that_disconnects_leaves_nothing_behind(
    serve: Serve, noise: Callable[..., Any], when: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        async with serve() as server:
            for _ in range(3):
                socket = await server.connect(PATH)
                if when != "connected":
                    await Caller(socket).start()
                if when == "talking":
                    await Caller(socket).append(noise(3))
                socket.transport.abort()
                await server.until_free()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
