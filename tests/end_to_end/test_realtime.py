"""The OpenAI Realtime API through Triton: openai-python, LiveKit, Pipecat and openai-agents hold calls in real time."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from typing import Any

import pytest
from websockets.sync.client import connect

from gateway.api.openai.realtime_responses import CANCEL_FRAMES
from tests.clients.conftest import QUESTION, python_of, realtime_texts, run_client, run_node
from tests.end_to_end.conftest import Service
from tests.end_to_end.test_live import FRAME, PIECE_S, SECONDS, pieces
from tests.gateway.openai.types import Order, check_realtime

__all__ = ["realtime_texts"]

SESSION: dict[str, Any] = {
    "type": "realtime",
    "instructions": "You are Ana.",
    "audio": {"input": {"turn_detection": {"type": "server_vad"}}, "output": {"voice": "marin"}},
}


class Received:
    """What a client of openai-python receives, checked event by event."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._order = Order()

    def add(self, event: Any) -> None:
        fields = event.model_dump(mode="json", exclude_unset=True)
        check_realtime(fields)
        self._order.add(fields)
        self.events.append(fields)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]

    def check_call(self, realtime_texts: list[str]) -> None:
        """Assert what a call of 10 s, whose response is cancelled once, must look like."""
        assert not self.of("error")
        deltas = [base64.b64decode(event["delta"]) for event in self.of("response.output_audio.delta")]
        assert {len(delta) for delta in deltas} == {2 * FRAME}
        # The agent of this checkpoint talks on and on.
        assert len(deltas) == pytest.approx(SECONDS / 0.08 - CANCEL_FRAMES, rel=0.05)
        (done,) = self.of("response.output_audio_transcript.done")
        before = done["transcript"]
        texts = "".join(event["delta"] for event in self.of("response.output_audio_transcript.delta"))
        after = texts.removeprefix(before)
        expected = "".join(realtime_texts)
        assert expected.startswith(before)
        assert after in expected
        assert len(before) > 0.3 * len(expected) > 0
        statuses = [event["response"]["status"] for event in self.of("response.done")]
        assert statuses.count("cancelled") == 1
        usages = [event["response"]["usage"] for event in self.of("response.done")]
        assert all(usage["total_tokens"] > 0 for usage in usages)


@pytest.mark.long
async def test_openai_python_async_holds_a_call(tiny_service: Service, realtime_texts: list[str]) -> None:
    from openai import AsyncOpenAI

    received = Received()
    client = AsyncOpenAI(api_key="K", base_url=f"{tiny_service.url}/v1")
    async with client.realtime.connect(model="gpt-realtime") as connection:

        async def talk() -> None:
            due = time.monotonic()
            for number, piece in enumerate(pieces()):
                if number == 100:
                    await connection.response.cancel()
                await connection.input_audio_buffer.append(audio=piece)
                due += PIECE_S
                await asyncio.sleep(max(due - time.monotonic(), 0))
            await connection.close()

        await connection.session.update(session=SESSION)  # type: ignore[arg-type]
        talking = asyncio.create_task(talk())
        async for event in connection:
            received.add(event)
        await talking
    received.check_call(realtime_texts)
    await asyncio.to_thread(tiny_service.wait_until_free, 1)


@pytest.mark.long
def test_openai_python_sync_holds_a_call(tiny_service: Service, realtime_texts: list[str]) -> None:
    from openai import OpenAI

    received = Received()
    client = OpenAI(api_key="K", base_url=f"{tiny_service.url}/v1")
    with client.realtime.connect(model="gpt-realtime") as connection:

        def talk() -> None:
            due = time.monotonic()
            for number, piece in enumerate(pieces()):
                if number == 100:
                    connection.response.cancel()
                connection.input_audio_buffer.append(audio=piece)
                due += PIECE_S
                time.sleep(max(due - time.monotonic(), 0))
            connection.close()

        connection.session.update(session=SESSION)  # type: ignore[arg-type]
        talking = threading.Thread(target=talk)
        talking.start()
        for event in connection:
            received.add(event)
        talking.join()
    received.check_call(realtime_texts)
    tiny_service.wait_until_free(1)


def test_a_short_session_on_models(golden_service: Service) -> None:
    """Events of the whole life of a response, on real parts."""
    order, kinds = Order(), list[str]()
    url = golden_service.url.replace("http", "ws", 1) + "/v1/realtime"
    with connect(url, compression=None, proxy=None) as live:
        live.send(json.dumps({"type": "session.update", "session": SESSION}))
        audio = base64.b64encode(bytes(10 * FRAME)).decode()
        live.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
        while "response.done" not in kinds:
            answer = json.loads(live.recv(timeout=20))
            check_realtime(answer)
            order.add(answer)
            kinds.append(answer["type"])
            if kinds[-1] == "response.output_audio.delta" and kinds.count(kinds[-1]) == 3:
                live.send(json.dumps({"type": "response.cancel"}))
    golden_service.wait_until_free()


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name", ["livekit", pytest.param("pipecat", marks=pytest.mark.alone), "openai_agents", "openai_agents_js"]
)
async def test_a_framework_holds_a_call(tiny_service: Service, realtime_texts: list[str], name: str) -> None:
    url = tiny_service.url.replace("http", "ws", 1) + "/v1/realtime"
    scripts: dict[str, list[object]] = {
        "livekit": ["livekit_session.py", "realtime", f"{tiny_service.url}/v1"],
        "pipecat": ["pipecat_pipeline.py", "realtime", url],
        "openai_agents": ["openai_agents.py", url],
    }
    if name == "openai_agents_js":
        found = await run_node("openai_agents.mjs", url, QUESTION, SECONDS)
    else:
        found = await run_client(python_of(name), *scripts[name], QUESTION, SECONDS)  # type: ignore[arg-type]
    await asyncio.to_thread(tiny_service.wait_until_free, 1)
    assert found["errors"] == []
    # The agent talks from the first frames on.
    assert found["audio_seconds"] == pytest.approx(found["seconds"], rel=0.05)
    # The agents SDKs have the text of whole responses only, and this agent does not come to the end of one.
    if name in ("livekit", "pipecat"):
        items = found["items"] if name == "livekit" else [("assistant", text) for text in found["assistant"]]
        said = "".join(text for role, text in items if role == "assistant").replace(" ", "")
        expected = "".join(realtime_texts).replace(" ", "")
        assert expected.startswith(said)
        assert len(said) > 0.9 * len(expected) > 0
