"""The Python client resumes a conversation whose connection is lost."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gateway.client import AgentAudio, AsyncClient, Client, ClientError, Ended, Event, Ready
from tests.gateway.websocket.conftest import serve

__all__ = ["serve"]

PCM = np.random.default_rng(3).uniform(-0.3, 0.3, (20, 1920)).astype(np.float32)
CUT_AT = 6


async def asynchronous(url: str) -> list[Event]:
    async with AsyncClient(url) as client, client.converse(seed=1, on_gap="wait") as conversation:

        async def talk() -> None:
            for number, frame in enumerate(PCM):
                if number == CUT_AT:
                    conversation._socket.transport.abort()
                    # Longer than the client takes to notice.
                    await asyncio.sleep(0.5)
                await conversation.send(frame)
                await asyncio.sleep(0.08)
            await conversation.end()

        talking = asyncio.create_task(talk())
        try:
            return [event async for event in conversation]
        finally:
            talking.cancel()


def synchronous(url: str) -> list[Event]:
    with Client(url) as client, client.converse(seed=1) as conversation:
        events: list[Event] = []
        for number, event in enumerate(conversation):
            events.append(event)
            if number == CUT_AT:
                conversation._socket.socket.shutdown(socket.SHUT_RDWR)
            elif isinstance(event, AgentAudio):
                conversation.send(PCM[0])
            if isinstance(event, Ready):
                time.sleep(0.1)
                conversation.send(PCM[0])
                conversation.end()
        return events


def check(events: list[Event]) -> None:
    (ready,) = [event for event in events if isinstance(event, Ready)]
    indices = [event.index for event in events if isinstance(event, AgentAudio)]
    before = [index for index in indices if index < ready.index]
    assert before == list(range(len(before)))
    assert indices == before + list(range(ready.index, indices[-1] + 1))
    ended = events[-1]
    assert isinstance(ended, Ended)
    assert (ended.reason, ended.frames) == ("completed", indices[-1] + 1)


@pytest.mark.parametrize("kind", ["asynchronous", "synchronous"])
async def test_it_resumes(serve: Callable[..., Any], kind: str) -> None:
    async with serve(resume_seconds=5, live_speed=1) as server:
        url = server.url.replace("ws", "http", 1)
        check(await (asynchronous(url) if kind == "asynchronous" else asyncio.to_thread(synchronous, url)))
        await server.until_free()


async def test_without_the_setting_a_lost_connection_is_an_error(serve: Callable[..., Any]) -> None:
    async with serve(live_speed=1) as server:
        with pytest.raises(ClientError, match="broke off the conversation"):
            await asynchronous(server.url.replace("ws", "http", 1))
        await server.until_free()


async def test_it_gives_up_when_the_session_is_over(serve: Callable[..., Any]) -> None:
    async with serve(resume_seconds=5, live_speed=1) as server:
        url = server.url.replace("ws", "http", 1)
        async with AsyncClient(url) as client, client.converse() as conversation:
            (session,) = server.runtime.live_sessions._resumable.values()
            conversation._socket.transport.abort()
            session.stop_for_drain()
            with pytest.raises(ClientError, match="no session to resume"):
                async for _ in conversation:
                    pass
        await server.until_free()
