"""How Realtime sessions end, and how full, draining and failing servers refuse them."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from time import monotonic
from typing import Any

import numpy as np
import pytest

from tests.gateway.openai.conftest import REALTIME_PATH, RealtimeCaller, Serve, Server, realtime, refusal
from tests.gateway.websocket.conftest import FRAME
from tests.gateway.websocket.test_ends import framed, never_read_from
from tests.series import total

DELTA = "response.output_audio.delta"


async def talking(caller: RealtimeCaller) -> None:
    """Start a session whose agent speaks."""
    await caller.append(bytes(2 * FRAME))
    await caller.until(DELTA)


async def ended(caller: RealtimeCaller) -> str:
    """The code of the error at the end, after the response that it interrupts."""
    *_, done, error = await caller.until_closed()
    assert done["type"] == "response.done"
    response = done["response"]
    assert response["status"] == "failed"
    assert response["status_details"]["error"]["code"] == error["error"]["code"]
    assert response["status_details"]["error"]["message"] == error["error"]["message"]
    code: str = error["error"]["code"]
    return code


async def test_a_full_server_refuses_and_takes_the_next_caller_later(serve: Serve) -> None:
    """Before the connection is accepted: LiveKit would connect again at once."""
    async with serve(slots=1) as server:
        async with realtime(server) as first:
            assert await refusal(server) == (503, "server_overloaded")
            await talking(first)
            assert await refusal(server) == (503, "server_overloaded")
        await server.until_free()
        async with realtime(server) as third:
            await talking(third)


async def test_a_late_start_on_a_full_server_is_an_error(serve: Serve) -> None:
    async with serve(slots=1, handshake_seconds=0.1) as server, realtime(server) as late:
        await asyncio.sleep(0.3)
        async with realtime(server) as other:
            await talking(other)
            await late.append(bytes(2 * FRAME))
            _, event = await late.until_closed()
        assert (event["error"]["code"], late.code) == ("server_overloaded", 1013)


async def test_a_draining_server_refuses(server: Server) -> None:
    server.runtime.admission.draining = True
    assert await refusal(server) == (503, "server_shutting_down")


async def test_an_engine_that_is_down_refuses(server: Server) -> None:
    server.engine.down = True
    assert await refusal(server) == (503, "server_error")
    server.engine.down = False


async def test_a_drain_ends_sessions(serve: Serve) -> None:
    async with serve(drain_seconds=0.2) as server, realtime(server) as caller:
        await talking(caller)
        draining = asyncio.create_task(server.runtime.sessions.drain())
        assert await ended(caller) == "server_shutting_down"
        assert caller.code == 1012
        await draining


async def test_a_failing_engine_ends_the_session(server: Server) -> None:
    async with realtime(server) as caller:
        await talking(caller)
        server.engine.down = True
        assert await ended(caller) == "server_error"
        assert caller.code == 1011
    server.engine.down = False


async def test_no_audio_for_the_idle_time_ends_the_session(serve: Serve) -> None:
    async with serve(idle_seconds=0.4) as server, realtime(server) as caller:
        await talking(caller)
        assert await ended(caller) == "session_expired"
        assert caller.code == 1000


async def test_the_longest_duration_ends_the_session(serve: Serve) -> None:
    async with serve(max_call_seconds=0.6, warn_seconds=0.3) as server, realtime(server) as caller:
        await talking(caller)
        assert await ended(caller) == "session_expired"
        assert caller.code == 1000


async def test_a_message_beyond_the_limit_ends_the_session(serve: Serve) -> None:
    async with serve(max_message_bytes=10_000) as server, realtime(server) as caller:
        await talking(caller)
        await caller.append(bytes(10_000))
        await caller.until_closed()
        assert caller.code == 1009
        await server.until_free()


async def test_a_client_that_does_not_read_is_disconnected_and_frees_the_slot(serve: Serve) -> None:
    append = {"type": "input_audio_buffer.append", "audio": "A" * 10_240}
    async with serve(output_frames=10) as server:
        audio = framed(json.dumps(append).encode(), 0x81)
        sent = asyncio.create_task(asyncio.to_thread(never_read_from, server, REALTIME_PATH, [audio, audio]))
        async with asyncio.timeout(30):
            while not server.runtime.admission.taken:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await server.until_free()
        await sent


async def test_audio_is_sent_no_faster_than_real_time(serve: Serve) -> None:
    async with serve(live_speed=1) as server, realtime(server) as caller:
        await caller.append(bytes(2 * FRAME * 30))
        await caller.until(DELTA)
        began = monotonic()
        for number in range(16):
            await caller.until(DELTA)
            # Two frames may be ahead, because clients send pieces of 100 ms.
            assert monotonic() - began > (number - 3) * 0.08


@pytest.mark.parametrize("pieces", [20, 100])
async def test_a_client_in_real_time_gets_all_of_the_agents_audio(serve: Serve, pieces: int) -> None:
    """Pipecat sends pieces of 20 ms, LiveKit of 100 ms."""
    async with serve(live_speed=1) as server, realtime(server) as caller:

        async def send() -> None:
            due = monotonic()
            while True:
                await caller.append(bytes(48 * pieces))
                due += pieces / 1000
                await asyncio.sleep(due - monotonic())

        sending = asyncio.create_task(send())
        await caller.until(DELTA)
        # At the start, early audio is answered at once, and two frames may be ahead.
        began = monotonic()
        while monotonic() < began + 1:
            await caller.receive()
        before, began = len(caller.of(DELTA)), monotonic()
        while monotonic() < began + 3:
            await caller.receive()
        elapsed = monotonic() - began
        sending.cancel()
        dropped = total(server.runtime.metrics, "personaplex_dropped_frames_total", api="realtime")
    seconds = 0.08 * (len(caller.of(DELTA)) - before)
    assert seconds == pytest.approx(elapsed, abs=0.3)
    # At the start; then nothing is lost.
    assert dropped <= 3


@pytest.mark.parametrize("when", ["connected", "waiting", "talking"])
async def test_a_client_that_disconnects_leaves_nothing_behind(
    serve: Serve, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        async with serve() as server:
            for _ in range(3):
                socket = await server.connect(REALTIME_PATH)
                if when == "waiting":
                    await RealtimeCaller(socket).append(bytes(2 * FRAME))
                if when == "talking":
                    await talking(RealtimeCaller(socket))
                socket.transport.abort()
                began = monotonic()
                await server.until_free()
                assert monotonic() - began < 1
    assert not caplog.records


async def test_text_and_audio_equal_the_answer_to_the_recording(server: Server, noise: Any) -> None:
    """One response of an agent that speaks without a pause, until the recording ends."""
    pcm = (noise(12) * 32767).astype("<i2")
    server.runtime.manifest.sampling.text_temperature = server.runtime.manifest.sampling.audio_temperature = 0.0
    async with realtime(server) as caller:
        await caller.update(instructions="You are Ana.", audio={"output": {"voice": "NATM1"}})
        for at in range(0, len(pcm), 2400):
            await caller.append(pcm[at : at + 2400].tobytes())
        while len(caller.of(DELTA)) < 12:
            await caller.receive()
    expected = await server.offline(pcm / np.float32(32768), 13, text_prompt="You are Ana.", voice="NATM1", greedy=True)
    frames = [base64.b64decode(event["delta"]) for event in caller.of(DELTA)[:12]]
    audio = np.frombuffer(b"".join(frames), "<i2")
    # The response opens with frame 0, which is loud on this engine.
    assert np.array_equal(audio, expected["audio"][: 12 * FRAME])
    texts = "".join(event["delta"] for event in caller.of("response.output_audio_transcript.delta"))
    assert expected["transcript"].startswith(texts.strip())
    assert texts
