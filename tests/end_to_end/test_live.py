"""The OpenAI Live API through Triton: openai-python and LiveKit hold calls in real time.

`test_answers` has calls of other clients.
"""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from websockets.sync.client import connect

from tests.clients.conftest import QUESTION, python_of, run_client, spoken
from tests.end_to_end.conftest import Service
from tests.gateway.openai.types import check

__all__ = ["spoken"]

FRAME = 1920
PIECE_S = 0.04
SESSION: dict[str, Any] = {
    "model": "gpt-live-1",
    "audio": {"format": {"type": "audio/pcm", "rate": 24000}, "output": {"voice": "marin"}},
    "delegation": {"type": "client"},
}
SECONDS = 10.0


def pieces() -> list[str]:
    """The question and silence, 10 s, in base64 pieces of 40 ms."""
    pcm, rate = soundfile.read(QUESTION, dtype="float32")
    pcm = soxr.resample(pcm, rate, 24_000)
    track = np.zeros(round(SECONDS * 24_000), np.float32)
    track[: len(pcm)] = pcm[: len(track)]
    data = (track * 32767).astype("<i2").tobytes()
    size = round(PIECE_S * 24_000) * 2
    return [base64.b64encode(data[at : at + size]).decode() for at in range(0, len(data), size)]


class Heard:
    """What a client of openai-python receives, checked event by event."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def add(self, event: Any) -> None:
        fields = event.model_dump(mode="json", exclude_unset=True)
        check(fields)
        self.events.append(fields)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["type"] == kind]

    def check_call(self, spoken: list[str]) -> None:
        """Assert what a call of 10 s, muted at 2 s, with one commentary, must look like."""
        (started,), (closed,) = self.of("session.started"), self.of("session.closed")
        assert started["client_event_id"] == "start"
        assert started["session"]["expires_at"] > time.time()
        deltas = [base64.b64decode(event["delta"]) for event in self.of("session.output_audio.delta")]
        assert {len(delta) for delta in deltas} == {2 * FRAME}
        assert len(deltas) == round(SECONDS / 0.08) + 1
        texts = self.of("session.output_transcript.delta")
        assert "".join(event["delta"] for event in texts) == "".join(spoken) != ""
        times = [event["start_ms"] for event in texts]
        assert times == sorted(times)
        assert all(at % 80 == 0 for at in times)
        ids = [event["event_id"] for event in self.events if "event_id" in event]
        assert len(set(ids)) == len(ids)
        (muted,) = self.of("session.input_audio.muted")
        assert muted["client_event_id"] == "mute"
        (error,) = self.of("error")
        assert error["error"]["client_event_id"] == "commentary"
        assert closed["reason"] == "close_requested"
        assert closed["usage"]["seconds"] == 11
        assert self.events[-1] is closed


@pytest.mark.long
async def test_openai_python_async_holds_a_call(tiny_service: Service, spoken: list[str]) -> None:
    from openai import AsyncOpenAI

    heard = Heard()
    async with AsyncOpenAI(api_key="K", base_url=f"{tiny_service.url}/v1").live.connect() as connection:

        async def talk() -> None:
            due = time.monotonic()
            for number, piece in enumerate(pieces()):
                if number == 50:
                    await connection.session.input_audio.mute(event_id="mute")
                    await connection.session.commentary.append(
                        content="Say hello.", delegation_id=None, event_id="commentary"
                    )
                await connection.session.input_audio.append(audio=piece)
                due += PIECE_S
                await asyncio.sleep(max(due - time.monotonic(), 0))
            await connection.session.close()

        await connection.session.start(session=SESSION, event_id="start")  # type: ignore[arg-type]
        heard.add(await connection.recv())
        began = time.monotonic()
        talking = asyncio.create_task(talk())
        async for event in connection:
            heard.add(event)
        elapsed = time.monotonic() - began
        await talking
    heard.check_call(spoken)
    assert elapsed == pytest.approx(SECONDS, rel=0.05)
    await asyncio.to_thread(tiny_service.wait_until_free, 1)


@pytest.mark.long
def test_openai_python_sync_holds_a_call(tiny_service: Service, spoken: list[str]) -> None:
    from openai import OpenAI

    heard = Heard()
    with OpenAI(api_key="K", base_url=f"{tiny_service.url}/v1").live.connect() as connection:

        def talk() -> None:
            due = time.monotonic()
            for number, piece in enumerate(pieces()):
                if number == 50:
                    connection.session.input_audio.mute(event_id="mute")
                    connection.session.commentary.append(
                        content="Say hello.", delegation_id=None, event_id="commentary"
                    )
                connection.session.input_audio.append(audio=piece)
                due += PIECE_S
                time.sleep(max(due - time.monotonic(), 0))
            connection.session.close()

        connection.session.start(session=SESSION, event_id="start")  # type: ignore[arg-type]
        heard.add(connection.recv())
        talking = threading.Thread(target=talk)
        talking.start()
        for event in connection:
            heard.add(event)
        talking.join()
    heard.check_call(spoken)
    tiny_service.wait_until_free(1)


def test_openai_python_is_told_what_is_not_there(tiny_service: Service) -> None:
    from openai import APIStatusError, OpenAI

    client = OpenAI(api_key="K", base_url=f"{tiny_service.url}/v1", max_retries=0)
    with pytest.raises(APIStatusError) as caught:
        client.live.create(session={"model": "gpt-live-1"}, transport={"type": "webrtc", "sdp": "v=0"})
    assert caught.value.status_code == 404
    assert caught.value.code == "not_found"


def test_a_short_session_on_models(golden_service: Service) -> None:
    events = [
        {"type": "session.start", "session": {"model": "personaplex", "instructions": "You are Ana."}},
        {"type": "session.input_audio.append", "audio": base64.b64encode(bytes(10 * FRAME)).decode()},
        {"type": "session.close"},
    ]
    url = golden_service.url.replace("http", "ws", 1) + "/v1/live/sessions"
    with connect(url, compression=None, proxy=None) as live:
        live.send(json.dumps(events[0]))
        answers = [json.loads(live.recv())]
        for event in events[1:]:
            live.send(json.dumps(event))
        answers += [json.loads(message) for message in live]
    for answer in answers:
        check(answer)
    assert sum(answer["type"] == "session.output_audio.delta" for answer in answers) == 6
    (usage,) = [answer for answer in answers if answer["type"] == "session.usage.updated"]
    assert 0 < usage["context_window"]["usage_ratio"] <= 1
    assert answers[-1]["reason"] == "close_requested"
    golden_service.wait_until_free()


@pytest.mark.long
def test_forced_speech_on_models(golden_service: Service) -> None:
    """The golden checkpoint says the words in order, and its audio follows; before them nothing changes."""
    words = "Hello this is Ana speaking."
    url = golden_service.url.replace("http", "ws", 1) + "/v1/live/sessions"

    def talk(commentary: str) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = []

        def send(kind: str, **fields: Any) -> None:
            live.send(json.dumps({"type": kind, **fields}))

        def receive(frames: int) -> None:
            while sum(answer["type"] == "session.output_audio.delta" for answer in answers) < frames:
                answers.append(json.loads(live.recv()))
                check(answers[-1])

        with connect(url, compression=None, proxy=None) as live:
            send("session.start", session={"model": "personaplex", "instructions": "You are Ana."})
            # Audio that waits for the start of a session on a busy machine is stale, and skipped.
            while not any(answer["type"] == "session.started" for answer in answers):
                answers.append(json.loads(live.recv()))
            send("session.input_audio.append", audio=base64.b64encode(bytes(10 * FRAME)).decode())
            receive(6)
            if commentary:
                send("session.commentary.append", content=commentary, delegation_id=None)
            send("session.input_audio.append", audio=base64.b64encode(bytes(2 * 60 * FRAME)).decode())
            receive(66)
            send("session.close")
            answers += [json.loads(message) for message in live]
        golden_service.wait_until_free()
        return answers

    def text_after(answers: list[dict[str, Any]], start_ms: int) -> str:
        texts = [answer for answer in answers if answer["type"] == "session.output_transcript.delta"]
        return "".join(answer["delta"] for answer in texts if answer["start_ms"] > start_ms)

    forced = talk(words)
    (appended,) = [answer for answer in forced if answer["type"] == "session.commentary.appended"]
    said = text_after(forced, appended["start_ms"])
    assert words in said
    assert words not in text_after(talk(""), 0)


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_livekit_plays_all_that_an_agent_says_who_never_stops(tiny_service: Service, spoken: list[str]) -> None:
    found = await run_client(
        python_of("livekit"), "livekit_session.py", "live", f"{tiny_service.url}/v1", QUESTION, SECONDS
    )
    await asyncio.to_thread(tiny_service.wait_until_free, 1)
    assert found["errors"] == []
    assert found["audio_seconds"] == pytest.approx(found["seconds"], rel=0.05)
    # What it says as the client closes the call is cut off.
    said = "".join(text for role, text in found["items"] if role == "assistant").replace(" ", "")
    expected = "".join(spoken).replace(" ", "")
    assert expected.startswith(said)
    assert len(said) > 0.9 * len(expected) > 0
