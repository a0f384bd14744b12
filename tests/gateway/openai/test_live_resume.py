"""Live API: sessions that openai-python resumes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.gateway.openai.conftest import FRAME, PATH, Caller, Serve, call, encoded, refusal
from tests.series import total

if TYPE_CHECKING:
    from openai.types.websocket_reconnection import ReconnectingEvent, ReconnectingOverrides

NEW = {"X-Resume-Token": "new"}
PCM = np.random.default_rng(3).uniform(-0.3, 0.3, (40, FRAME)).astype(np.float32)


async def test_openai_python_resumes_a_session(serve: Serve) -> None:
    """Its own reconnection, which sends no session.start. What was said meanwhile comes as a transcript."""
    from openai import AsyncOpenAI  # here: it takes a second, in every worker's collection

    token = ""

    def on_reconnecting(_: ReconnectingEvent) -> ReconnectingOverrides:
        return {"extra_headers": {"X-Resume-Token": token}}

    async with serve(slots=1, resume_seconds=10, live_speed=1) as server:
        client = AsyncOpenAI(api_key="K", base_url=server.url.replace("ws", "http", 1) + "/v1")
        connecting = client.live.connect(extra_headers=NEW, on_reconnecting=on_reconnecting, initial_delay=0.5)
        async with connecting as connection:
            events: list[Any] = []

            async def talk() -> None:
                for number, frame in enumerate(PCM):
                    if number == 10:
                        await connection.session.input_audio.mute()
                        connection._connection.transport.abort()
                    await connection.session.input_audio.append(audio=encoded(frame))
                    await asyncio.sleep(0.08)
                await connection.session.close()

            await connection.session.start(session={"model": "gpt-live-1"})
            talking: asyncio.Task[None] | None = None
            async for event in connection:
                events.append(event)
                if event.type == "session.started" and talking is None:
                    talking = asyncio.create_task(talk())
                elif event.type == "info" and event.code == "resume_token":
                    token = event.message
            assert talking is not None
            await talking
        resumed = total(server.runtime.metrics, "personaplex_resumed_total", api="live")
    assert resumed == 1
    started, again = (event for event in events if event.type == "session.started")
    assert again.session == started.session
    closed = events[-1]
    assert (closed.type, closed.reason) == ("session.closed", "close_requested")
    texts = [event for event in events if event.type == "session.output_transcript.delta"]
    times = [at for event in texts for at in (event.start_ms, event.end_ms)]
    assert times == sorted(times)
    (missed,) = [event for event in texts if event.end_ms - event.start_ms > 80]
    assert missed.start_ms >= 80 * 10


async def started(caller: Caller) -> str:
    """Start a resumable session; return its token."""
    await caller.start()
    while (info := await caller.until("info"))["code"] != "resume_token":
        pass
    token: str = info["message"]
    return token


async def test_a_muted_session_stays_muted(
    serve: Serve, noise: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve(resume_seconds=10) as server:
        encode, levels = server.engine.encode, []

        async def record(slots: Any, pcm: Any) -> Any:
            levels.append(float(np.abs(pcm).max()))
            return await encode(slots, pcm)

        monkeypatch.setattr(server.engine, "encode", record)
        async with call(server, additional_headers=NEW) as caller:
            token = await started(caller)
            await caller.send("session.input_audio.mute")
            await caller.until("session.input_audio.muted")
            caller.socket.transport.abort()
        async with call(server, additional_headers={"X-Resume-Token": token}) as caller:
            await caller.until("session.started")
            await caller.append(noise(2))
            await caller.close()
            assert caller.code == 1000
        await server.until_free()
    assert len(levels) >= 2
    assert not any(levels)


async def test_the_old_connection_is_told(serve: Serve) -> None:
    async with serve(resume_seconds=10) as server, call(server, additional_headers=NEW) as old:
        token = await started(old)
        async with call(server, additional_headers={"X-Resume-Token": token}) as caller:
            await caller.until("session.started")
            error = await old.until("error")
            await old.until_closed()
            assert (error["error"]["code"], old.code) == ("session_taken_over", 1008)
            await caller.send("session.start", session={"model": "gpt-live-1"})
            assert (await caller.until("error"))["error"]["code"] == "session_already_started"
            await caller.close()
            assert caller.events[-1]["reason"] == "close_requested"


@pytest.mark.parametrize("path", [PATH, "/v1/realtime"])
async def test_an_unknown_token_is_refused(serve: Serve, path: str) -> None:
    async with serve(resume_seconds=10) as server:
        assert await refusal(server, path, additional_headers={"X-Resume-Token": "none"}) == (404, "session_not_found")
