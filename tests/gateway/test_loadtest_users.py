"""Users of the load test over each WebSocket API, against the gateway on the fake engine: no frame is missing."""

from __future__ import annotations

from time import monotonic
from typing import Any

import pytest

from loadtest.conversation import Conversation
from loadtest.pacing import Start
from loadtest.paths import RECORDING
from loadtest.plan import Plan
from loadtest.record import Api
from loadtest.speech import Speech
from tests.gateway.websocket.conftest import serve

__all__ = ["serve"]

SECONDS = 1.6


@pytest.mark.parametrize("api", [Api.WEBSOCKET, Api.LIVE, Api.REALTIME, Api.TWILIO])
async def test_a_user_receives_every_frame(serve: Any, api: Api) -> None:
    async with serve(live_speed=1) as server:
        url = server.url.replace("ws:", "http:", 1)
        plan = Plan(url, "", str(RECORDING), drain=30.0)
        start = Start("admitted", 0.0, monotonic, lambda: None)
        call = Conversation(api, 0, SECONDS, plan, Speech.load(RECORDING), start, monotonic)
        await call.run(lambda: None)
        record = call.record
        assert (record.outcome.value, record.reason) == ("completed", "")
        assert record.frames == record.expected == round(SECONDS / 0.08)
        await server.until_free()
