"""Agent frames of an API in real time: which user frame each answers."""

from __future__ import annotations

import asyncio

import pytest

from loadtest.apis.real_time import RealTimeConnection
from loadtest.plan import Plan

SIZE = 3840


class Connection(RealTimeConnection):
    """A connection that has no transport: what it sends is dropped."""

    path = "/"

    def on_upgraded(self) -> None: ...

    def on_text(self, message: bytes) -> None: ...

    def write(self, data: bytes) -> None: ...


@pytest.fixture
def plan() -> Plan:
    return Plan(server="http://127.0.0.1:1", grpc="", recording="")


async def connected(plan: Plan, found: list[int]) -> Connection:
    """A connection whose server is ready, and which has sent one frame of silence."""
    connection = Connection(plan, lambda index, _size: found.append(index), [b"user"], b"silent")
    connection.received(SIZE)
    await asyncio.sleep(0)
    return connection


async def test_silence_of_the_server_before_the_start_answers_no_user_frame(plan: Plan) -> None:
    found: list[int] = []
    connection = await connected(plan, found)
    for _ in range(3):
        # One answers the user's silence, two the server's.
        connection.received(SIZE)
    await connection.send(0)
    connection.received(SIZE)
    assert found == [0, 1]
    connection.close()


async def test_silence_of_the_server_in_a_call_answers_no_user_frame(plan: Plan) -> None:
    found: list[int] = []
    connection = await connected(plan, found)
    await connection.send(0)
    for _ in range(3):
        # They answer the user's silence, its frame 0, and silence in place of its late frame 1.
        connection.received(SIZE)
    await connection.send(1)
    waiting = asyncio.create_task(connection.answered())
    await asyncio.sleep(0)
    assert found == [0, 1]
    assert not waiting.done()
    connection.received(SIZE)
    await waiting
    assert found == [0, 1, 2]
