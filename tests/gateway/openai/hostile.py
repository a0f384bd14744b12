"""Random and hostile clients of WebSocket APIs, beside a neighbour whose frames are measured."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as tuned
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.gateway.neighbour import FRAME_GAP_MS, LOOP_LAG_MS, Felt, MeasuredServer, serve_measured
from tests.gateway.websocket.test_bad_input import Message

LIMIT = 20_000
"""Characters of a message."""
INTERNAL_ERROR = 1011
AT_ONCE = 3
"""Random cases that run at the same time: many wait for a time limit."""
SETTINGS: dict[str, Any] = {
    "max_message_bytes": LIMIT, "openai_start_seconds": 0.5, "handshake_seconds": 0.5, "live_speed": 0
}  # fmt: skip


def event(kind: str, **fields: Any) -> str:
    return json.dumps({"type": kind, **fields})


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def open_connection(url: str, **options: Any) -> ClientConnection:
    """Connect once the slot of the previous connection is free."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await connect(
                    url, compression=None, proxy=None, close_timeout=1, ping_interval=None, max_size=None, **options
                )
            except InvalidStatus as refused:
                if refused.response.status_code != 503:
                    raise
                await asyncio.sleep(0.01)


async def held(server: MeasuredServer) -> dict[str, int]:
    """Tasks and files of the server."""
    report = await server.ask("report")
    return {name: report[name] for name in ("tasks", "files")}


async def until_only_the_neighbour_is_left(server: MeasuredServer, before: dict[str, int]) -> None:
    """Until the server holds one slot, and no more tasks and files than `before`."""
    async with asyncio.timeout(20):
        async with httpx.AsyncClient(base_url=server.url) as client:
            while "personaplex_conversations_active 1.0" not in (await client.get("/metrics")).text:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        while (now := await held(server)) and any(now[name] > before[name] for name in now):
            print(f"the server holds {now}, and held {before}")
            await asyncio.sleep(0.2)


def run_random_cases(
    models: Path, examples: int, run_case: Callable[..., Awaitable[None]], *kinds: st.SearchStrategy[Any]
) -> None:
    """Run so many cases of each kind on one server, several at once, beside one neighbour.

    `run_case`: takes the server and a case.
    """
    cases = list[Any]()

    @tuned(
        max_examples=examples,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        phases=[Phase.explicit, Phase.generate],
    )
    @given(st.data())
    def add_case(kind: st.SearchStrategy[Any], data: st.DataObject) -> None:
        cases.append(data.draw(kind))

    for kind in kinds:
        add_case(kind)
    felt = asyncio.run(_run_cases(_with_slots(models, AT_ONCE + 1), run_case, cases))
    assert felt.loop_lag_ms < LOOP_LAG_MS
    # The worst of minutes: the attacks have the narrower bound.
    assert felt.frame_gap_ms < 3 * FRAME_GAP_MS
    assert felt.frames > 5


async def _run_cases(models: Path, run_case: Callable[..., Awaitable[None]], cases: list[Any]) -> Felt:
    async with serve_measured(models, **SETTINGS) as server, server.neighbour() as felt:
        before = await held(server)
        waiting = iter(cases)

        async def run_next() -> None:
            for case in waiting:
                try:
                    await run_case(server, case)
                except BaseException as error:
                    error.add_note(f"case: {case!r}")
                    raise

        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(run_next())
        await until_only_the_neighbour_is_left(server, before)
    return felt


def _with_slots(models: Path, slots: int) -> Path:
    manifest = models / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"slots": slots}))
    return models


async def attack(url: str, messages: list[Message], **options: Any) -> None:
    """Send the messages and read the answers for a second, then drop the connection."""
    client = await open_connection(url, **options)

    async def send() -> None:
        for message in messages:
            await client.send(message)

    sending = asyncio.create_task(send())
    with suppress(ConnectionClosed, TimeoutError):
        async with asyncio.timeout(1):
            while True:
                await client.recv()
    sending.cancel()
    with suppress(ConnectionClosed, asyncio.CancelledError):
        await sending
    client.transport.abort()


async def measure_attack(models: Path, path: str, name: str, messages: list[Message], **options: Any) -> None:
    """Attack twice beside a neighbour, whose frames must not be delayed."""
    async with serve_measured(models) as server, server.neighbour() as felt:
        for _ in range(2):
            await attack(server.websocket_url + path, messages, **options)
        await asyncio.sleep(0.3)
    print(f"{name}: loop lag {felt.loop_lag_ms:.1f} ms, frame gap {felt.frame_gap_ms:.0f} ms")
    assert felt.loop_lag_ms < LOOP_LAG_MS
    assert felt.frame_gap_ms < FRAME_GAP_MS
    assert felt.frames > 5
