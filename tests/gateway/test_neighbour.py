"""The measurement itself: it sees a stalled event loop, and only that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.gateway.neighbour import FRAME_GAP_MS, LOOP_LAG_MS, MeasuredServer, best_of_three, serve_measured

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(shared_models: Path) -> AsyncIterator[MeasuredServer]:
    async with serve_measured(shared_models) as server:
        yield server


async def test_an_idle_server_has_no_lag(server: MeasuredServer):
    async with server.neighbour() as felt:
        await asyncio.sleep(1)
    assert felt.loop_lag_ms < LOOP_LAG_MS
    assert felt.frame_gap_ms < FRAME_GAP_MS
    assert felt.frames > 10


@best_of_three
async def test_a_stalled_loop_is_seen(server: MeasuredServer):
    """The gap may be too short on a busy machine: the client waits for a processor while the loop is stalled."""
    async with server.neighbour() as felt:
        await server.ask("stall")
        await asyncio.sleep(0.2)
    assert felt.loop_lag_ms > 90
    assert felt.frame_gap_ms > 90
