"""The TypeScript client resumes a conversation whose connection is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from tests.gateway.client_ts.conftest import Run
from tests.gateway.websocket.conftest import Server

CUT_AT = 6
FRAMES = 25

Call = tuple["Relay", Server, asyncio.Task[Any]]


class Relay:
    """Stands between a client and the server. `broken`: connections are lost, new ones at once."""

    def __init__(self, url: str) -> None:
        self._port = urlsplit(url).port
        self._writers: list[asyncio.StreamWriter] = []
        self.broken = False

    def cut(self) -> None:
        """Lose the connections without a close frame."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, server_writer]
        if self.broken:
            self.cut()
        await asyncio.gather(self._copy(reader, server_writer), self._copy(server_reader, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def calling(serve: Callable[..., Any], run: Run, **settings: Any) -> AsyncIterator[Call]:
    """A conversation in real time, once CUT_AT user frames have arrived."""
    async with serve(live_speed=1, **settings) as server:
        relay = Relay(server.url)
        async with await asyncio.start_server(relay.connected, "127.0.0.1", 0) as listener:
            url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
            call = asyncio.create_task(run("converse", url, params={"seed": 1}, frames=FRAMES, pause=80))
            async with asyncio.timeout(20):
                while [stage for stage, _ in server.engine.calls].count("encode") < CUT_AT:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            yield relay, server, call
        await server.until_free()


async def test_it_resumes(serve: Callable[..., Any], run: Run) -> None:
    async with calling(serve, run, resume_seconds=10) as (relay, _, call):
        relay.broken = True
        relay.cut()
        # Longer than the pause between two attempts.
        await asyncio.sleep(0.6)
        relay.broken = False
        found = (await call)["answer"]
    events = found["events"]
    (ready,) = [event for event in events if event["type"] == "ready"]
    assert ready["conversation_id"] == found["ready"]["conversation_id"]
    assert ready["missed_text"]
    indices = [event["index"] for event in events if event["type"] == "audio"]
    before = [index for index in indices if index < ready["index"]]
    assert before == list(range(len(before))) != []
    assert indices == before + list(range(ready["index"], indices[-1] + 1))
    assert (events[-1]["reason"], events[-1]["frames"]) == ("completed", indices[-1] + 1)


async def test_without_the_setting_a_lost_connection_is_an_error(serve: Callable[..., Any], run: Run) -> None:
    async with calling(serve, run) as (relay, _, call):
        relay.cut()
        error = (await call)["error"]
    assert (error["code"], error["message"]) == ("connection-lost", "the connection was lost: close code 1006")


async def test_it_gives_up_when_the_session_is_over(serve: Callable[..., Any], run: Run) -> None:
    async with calling(serve, run, resume_seconds=10) as (relay, server, call):
        (session,) = server.runtime.live_sessions._resumable.values()
        relay.cut()
        session.stop_for_drain()
        error = (await call)["error"]
    assert error["code"] == "unknown-conversation"
    assert "no session to resume" in error["message"]


async def test_it_gives_up_when_the_time_is_over(serve: Callable[..., Any], run: Run) -> None:
    async with calling(serve, run, resume_seconds=0.5) as (relay, _, call):
        relay.broken = True
        relay.cut()
        error = (await call)["error"]
    assert (error["code"], error["message"]) == (
        "connection-lost",
        "the connection was lost and could not be replaced in time",
    )
