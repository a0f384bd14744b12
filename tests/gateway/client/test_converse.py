"""Live conversations with the Python client, synchronous and asynchronous, against the real gateway and models."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import Callable, Iterator
from queue import Queue
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
import websockets.asyncio.server as websockets
from websockets.http11 import Request, Response

from gateway.cli.service import Service
from gateway.client import (
    AgentAudio,
    AgentText,
    AsyncClient,
    Client,
    ClientError,
    Ended,
    Event,
    Ready,
    ServerBusyError,
    Stats,
)

FRAMES = 14
SPEECH = (np.random.default_rng(0).standard_normal(FRAMES * 1920) * 0.05).astype(np.float32)
READY = {
    "type": "ready",
    "conversation_id": "c",
    "voice": "ANA",
    "seed": 1,
    "audio": {"format": "pcm_s16le", "sample_rate": 24000},
    "frame_size": 1920,
    "setup_ms": 1.5,
    "of_a_later_version": True,
}
ENDED = {
    "type": "ended",
    "reason": "completed",
    "message": "",
    "frames": 0,
    "seconds": 0.0,
    "transcript": "",
    "dropped_frames": 0,
    "late_frames": 0,
}


def synchronous(url: str, pcm: np.ndarray, **options: Any) -> tuple[Ready, list[Event]]:
    wait, verify, key = options.pop("wait_when_full", 0.0), options.pop("verify", True), options.pop("api_key", None)
    with (
        Client(url, wait_when_full=wait, verify=verify, api_key=key) as client,
        client.converse(**options) as conversation,
    ):
        conversation.send(pcm)
        conversation.end()
        return conversation.ready, list(conversation)


def asynchronous(url: str, pcm: np.ndarray, **options: Any) -> tuple[Ready, list[Event]]:
    wait, verify, key = options.pop("wait_when_full", 0.0), options.pop("verify", True), options.pop("api_key", None)

    async def converse() -> tuple[Ready, list[Event]]:
        async with (
            AsyncClient(url, wait_when_full=wait, verify=verify, api_key=key) as client,
            client.converse(**options) as conversation,
        ):
            await conversation.send(pcm)
            await conversation.end()
            return conversation.ready, [event async for event in conversation]

    return asyncio.run(converse())


Converse = Callable[..., tuple[Ready, list[Event]]]


@pytest.fixture(params=[synchronous, asynchronous], ids=["sync", "async"])
def converse(request: pytest.FixtureRequest) -> Converse:
    return request.param


@pytest.mark.parametrize("audio_format", ["pcm_s16le", "pcm_f32le"])
def test_a_conversation_is_the_recording_of_the_same_audio(
    service: Service, converse: Converse, audio_format: str
) -> None:
    pcm = (np.rint(SPEECH * 32767) / np.float32(32767)).astype(np.float32)
    ready, events = converse(service.url, pcm, seed=4, on_gap="wait", audio_format=audio_format)
    assert (ready.seed, ready.sample_rate, ready.frame_size) == (4, 24_000, 1920)
    ended = events[-1]
    assert isinstance(ended, Ended)
    assert (ended.reason, ended.dropped_frames) == ("completed", 0)
    audio = [event for event in events if isinstance(event, AgentAudio)]
    assert [event.index for event in audio] == list(range(ended.frames))
    assert {event.pcm.shape for event in audio} == {(1920,)}
    text = [event for event in events if isinstance(event, AgentText)]
    assert "".join(event.text for event in text) == ended.transcript
    assert any(isinstance(event, Stats) for event in events)

    recording = io.BytesIO()
    soundfile.write(recording, pcm, 24_000, "FLOAT" if audio_format == "pcm_f32le" else "PCM_16", format="WAV")
    with Client(service.url) as client:
        answer = client.respond(recording.getvalue(), seed=4, max_steps=FRAMES)
    recorded, _ = soundfile.read(io.BytesIO(answer.audio), dtype="float32")
    live = np.concatenate([event.pcm for event in audio])[: len(recorded)]
    np.testing.assert_allclose(live, recorded, atol=2 / 32767)
    assert np.abs(recorded).max() > 0.01


@pytest.fixture
def scripted() -> Iterator[Callable[..., str]]:
    """Starts a WebSocket server in a thread that runs `handler`; its URL."""
    started_servers: list[tuple[Callable[[], object], threading.Thread]] = []

    def start(handler: Callable[[websockets.ServerConnection], Any], **options: Any) -> str:
        ready: Queue[tuple[str, Callable[[], object]]] = Queue()

        async def serve() -> None:
            loop, stop = asyncio.get_running_loop(), asyncio.Event()
            async with websockets.serve(handler, "127.0.0.1", 0, **options) as server:
                url = f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
                ready.put((url, lambda: loop.call_soon_threadsafe(stop.set)))
                await stop.wait()

        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        url, stop = ready.get(timeout=5)
        started_servers.append((stop, thread))
        return url

    yield start
    for stop, thread in started_servers:
        stop()
        thread.join()


async def _answers(connection: websockets.ServerConnection, *messages: dict[str, Any]) -> None:
    await connection.recv()
    for message in messages:
        await connection.send(json.dumps(message))


def test_a_full_server_is_asked_again(scripted: Callable[..., str], converse: Converse) -> None:
    attempts: list[str] = []

    def refuse(connection: websockets.ServerConnection, request: Request) -> Response | None:
        attempts.append(request.headers.get("Authorization", ""))
        if len(attempts) > 2:
            return None
        response = connection.respond(503, '{"detail": "all 8 conversations are taken"}')
        response.headers["Retry-After"] = "0"
        return response

    async def handler(connection: websockets.ServerConnection) -> None:
        await _answers(connection, READY)
        assert await connection.recv() == np.full(10, 16384, "<i2").tobytes()
        assert json.loads(await connection.recv()) == {"type": "end"}
        await connection.send(json.dumps(ENDED))

    url = scripted(handler, process_request=refuse)
    with pytest.raises(ServerBusyError, match=r"^all 8 conversations are taken$"):
        converse(url, np.zeros(10))
    attempts.clear()
    ready, events = converse(url, np.full(10, 0.5), wait_when_full=5.0, api_key="k")
    assert attempts == ["Bearer k"] * 3
    assert ready.conversation_id == "c"
    assert [type(event) for event in events] == [Ended]


def test_a_server_that_accepts_and_refuses_is_asked_again(scripted: Callable[..., str], converse: Converse) -> None:
    attempts: list[int] = []

    async def handler(connection: websockets.ServerConnection) -> None:
        attempts.append(1)
        if len(attempts) < 2:
            await _answers(connection, {"type": "error", "code": "at-capacity", "message": "taken; try again in 1 s"})
            await connection.close(1013)
        else:
            await _answers(connection, READY, ENDED)

    ready, events = converse(scripted(handler), np.zeros(1), wait_when_full=5.0)
    assert (len(attempts), ready.voice, len(events)) == (2, "ANA", 1)


def test_errors_are_the_servers_own(scripted: Callable[..., str], converse: Converse) -> None:
    async def unknown_voice(connection: websockets.ServerConnection) -> None:
        await _answers(connection, {"type": "error", "code": "unknown-voice", "message": "no voice X"})

    async def broken(connection: websockets.ServerConnection) -> None:
        await _answers(connection, READY)
        await connection.close(1011, "the models fail")

    async def draining_later(connection: websockets.ServerConnection) -> None:
        await _answers(connection, READY, {"type": "error", "code": "draining", "message": "shutting down"})

    with pytest.raises(ClientError, match=r"^no voice X$"):
        converse(scripted(unknown_voice), np.zeros(1), voice="X", wait_when_full=5.0)
    with pytest.raises(ClientError, match="broke off the conversation: the models fail"):
        converse(scripted(broken), np.zeros(1))
    with pytest.raises(ServerBusyError, match="shutting down"):
        converse(scripted(draining_later), np.zeros(1), wait_when_full=5.0)
    with pytest.raises(ClientError, match=r"cannot reach http://127\.0\.0\.1:1: .*personaplex serve"):
        converse("http://127.0.0.1:1", np.zeros(1))


def test_a_refused_parameter_is_named_and_leaves_no_connection(service: Service, converse: Converse) -> None:
    with pytest.raises(ClientError, match="NOBODY"):
        converse(service.url, np.zeros(1), voice="NOBODY")
    assert "personaplex_conversations_active 0.0" in _metrics(service)


def _metrics(service: Service) -> str:
    return httpx.get(f"{service.url}/metrics").text
