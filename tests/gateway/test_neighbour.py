"""The measurement itself: it sees a stalled event loop, and only that."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.gateway.neighbour import FRAME_GAP_MS, LOOP_LAG_MS, serve_measured


async def test_an_idle_server_has_no_lag(models: Path):
    async with serve_measured(models) as server, server.neighbour() as felt:
        await asyncio.sleep(1)
    assert felt.loop_lag_ms < LOOP_LAG_MS
    assert felt.frame_gap_ms < FRAME_GAP_MS
    assert felt.frames > 10


async def test_a_stalled_loop_is_seen(models: Path):
    async with serve_measured(models) as server, server.neighbour() as felt:
        await server.ask("stall")
        await asyncio.sleep(0.2)
    assert felt.loop_lag_ms > 90
