"""Users of the load test over each WebSocket API, against the gateway on the fake engine: no frame is missing."""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from loadtest.conversation import converse, new_record
from loadtest.pacing import Start
from loadtest.paths import RECORDING
from loadtest.plan import Plan
from loadtest.record import Api
from loadtest.speech import Speech
from tests.gateway.websocket.conftest import serve

__all__ = ["serve"]

SECONDS = 1.6


@pytest.mark.parametrize("api", [Api.WEBSOCKET, Api.LIVE, Api.REALTIME, Api.TWILIO])
async def test_a_user_receives_every_frame(serve: Any, api: Api, tmp_path: Path) -> None:
    async with serve(live_speed=1) as server:
        url = server.url.replace("ws:", "http:", 1)
        plan = Plan(url, "", str(RECORDING), str(tmp_path / "records.json"), 1, SECONDS, drain=30.0)
        record = new_record(plan, 0, api)
        start = Start(1, 0.2, monotonic, lambda _: None)
        await converse(record, plan, Speech.load(RECORDING), start, monotonic, lambda: None)
        assert (record.outcome.value, record.reason) == ("completed", "")
        assert record.frames == record.expected == round(SECONDS / 0.08)
        await server.until_free()
