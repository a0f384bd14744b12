"""`/v1/converse`: what a well-behaved client sends and sees."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.gateway.ws.conftest import FRAME, Server, hear


async def test_a_call_from_start_to_end(server: Server, noise: Callable[..., Any]) -> None:
    async with server.connect() as client:
        await client.send(json.dumps({"type": "start", "seed": 1, "voice": "NATM1"}))
        await client.send((noise(5) * 32767).astype("<i2").tobytes())
        await client.send(json.dumps({"type": "end"}))
        heard = await hear(client)
    assert heard.code == 1000
    assert heard.order[:2] == ["ready", "audio"]
    ready = heard.one("ready")
    assert ready["voice"] == "NATM1"
    assert ready["seed"] == 1
    assert ready["audio"] == {"format": "pcm_s16le", "sample_rate": 24000}
    assert ready["frame_size"] == FRAME
    assert [len(audio) for audio in heard.audio] == [FRAME * 2] * 6
    ended = heard.one("ended")
    assert ended["reason"] == "completed"
    assert ended["frames"] == 6
    assert ended["transcript"] == "".join(text["text"] for text in heard.of("text")).strip()
