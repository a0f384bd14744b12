"""A live session whose connection is lost continues with silence until another connection resumes it."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from gateway.errors import UnknownConversation
from gateway.session.caller import Caller
from gateway.session.events import Ready, Reason
from gateway.session.live import TransportClosed
from gateway.session.live_sessions import NEW_TOKEN
from gateway.session.runtime import Runtime
from gateway.telemetry.metrics import Api
from tests.gateway.session.live.conftest import (
    ANA,
    CALLER,
    FRAME,
    SAMPLING,
    Client,
    Connect,
    JumpingPolicy,
    metric,
    noise,
    now,
    offline,
    until,
)

# The replacement in later versions of pytest-asyncio applies to whole sessions.
pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy.")

GRACE_S = 5.0


@pytest.fixture
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    """Hours take milliseconds."""
    return JumpingPolicy()


@pytest.fixture(autouse=True)
def resumable(runtime: Runtime) -> None:
    runtime.settings.resume_seconds = GRACE_S


def ready_of(client: Client) -> Ready:
    (ready,) = client.of(Ready)
    assert isinstance(ready, Ready)
    return ready


def token_of(client: Client) -> str:
    resume = ready_of(client).resume
    assert resume is not None
    assert resume.seconds == GRACE_S
    return resume.token


async def resume(runtime: Runtime, token: str) -> tuple[Client, asyncio.Task[object]]:
    """Another client, which resumes a session."""
    client = Client(reads=True)
    session = runtime.live_sessions.find(token, CALLER)
    assert session is not None
    client.session = session
    running: asyncio.Task[object] = asyncio.create_task(client.run())
    await client.wait_ready()
    return client, running


async def test_a_resumed_session_has_heard_silence(connect: Connect, runtime: Runtime) -> None:
    """The tokens are those of one call with silence in the middle; what was said meanwhile comes as text."""
    first, second = noise(7.5, seed=1), noise(10, seed=2)
    async with connect(token=NEW_TOKEN) as client:
        await client.stream(first)
        client.disconnect()
        await asyncio.sleep(2)
        assert runtime.admission.taken == 1
        other, running = await resume(runtime, token_of(client))
        await other.stream(second)
        await other.end_audio()
        await running
    gaps = round(metric(runtime, "gap_frames_total"))
    assert gaps == pytest.approx(2 / 0.08, abs=3)
    # The last half of a frame is padded.
    heard = np.concatenate([first, np.zeros(FRAME // 2 + gaps * FRAME, np.float32), second])
    expected = await offline(runtime, heard, 8 + gaps + 10 + 1)
    ready = ready_of(other)
    assert client.tokens == expected[: ready.missed_from]
    assert other.tokens == expected[ready.index :]
    assert [event.frame.index for event in other.answers] == list(range(ready.index, len(expected)))
    pieces = [runtime.tokenizer.pieces[tokens[0]] for tokens in expected]
    assert ready.missed_text == "".join(pieces[ready.missed_from : ready.index]) != ""
    assert (ready.conversation_id, ready.seed) == (ready_of(client).conversation_id, ready_of(client).seed)
    assert other.ended.reason is Reason.COMPLETED
    assert other.ended.summary.frames == len(expected)
    assert other.ended.summary.transcript == "".join(pieces).strip()
    assert metric(runtime, "connections_lost_total", api="converse") == 1
    assert metric(runtime, "resumed_total", api="converse") == 1
    # And the request that `expected` comes from.
    assert metric(runtime, "ended_total") == metric(runtime, "ended_total", reason="completed") == 2
    assert runtime.admission.taken == 0


async def test_it_is_resumed_as_often_as_its_connection_is_lost(connect: Connect, runtime: Runtime) -> None:
    async with connect(token=NEW_TOKEN) as client:
        await client.wait_frames(1)
        token, latest = token_of(client), client
        for number in range(3):
            latest.disconnect()
            await asyncio.sleep(GRACE_S - 1)
            latest, running = await resume(runtime, token)
            await latest.stream(noise(3, seed=number))
        await latest.end_audio()
        await running
        assert latest.ended.reason is Reason.COMPLETED
    assert metric(runtime, "resumed_total") == 3


async def test_a_session_that_nobody_resumes_frees_its_slot(connect: Connect, runtime: Runtime) -> None:
    async with connect(token=NEW_TOKEN, idle=1.0) as client:
        await client.stream(noise(3))
        client.disconnect()
        lost_at = now()
        await until(lambda: runtime.admission.taken == 0)
        assert now() - lost_at == pytest.approx(GRACE_S, abs=0.3)
        with pytest.raises(UnknownConversation, match="no session to resume"):
            runtime.live_sessions.find(token_of(client), CALLER)
    assert metric(runtime, "ended_total", reason="disconnected") == 1


async def test_another_api_cannot_resume_it(connect: Connect, runtime: Runtime) -> None:
    async with connect(token=NEW_TOKEN) as client:
        await client.wait_ready()
        with pytest.raises(UnknownConversation):
            runtime.live_sessions.find(token_of(client), Caller(Api.GRPC))


async def test_a_client_that_hangs_up_ends_the_session(connect: Connect, runtime: Runtime) -> None:
    async with connect(token=NEW_TOKEN) as client:
        await client.stream(noise(3))
        client.fail(TransportClosed(hung_up=True))
        ended = await client.wait_ended()
    assert ended.reason is Reason.DISCONNECTED
    assert runtime.admission.taken == 0
    assert metric(runtime, "connections_lost_total") == 0


async def test_the_end_of_the_audio_ends_the_session(connect: Connect, runtime: Runtime) -> None:
    """What is still to be said has no listener."""
    async with connect(token=NEW_TOKEN) as client:
        await client.put(noise(9))
        await client.end_audio()
        client.disconnect()
        await client.wait_ended()
    assert runtime.admission.taken == 0


@pytest.mark.parametrize("token", [None, NEW_TOKEN])
async def test_without_token_or_setting_a_session_ends_with_its_connection(
    connect: Connect, runtime: Runtime, token: str | None
) -> None:
    if token is not None:
        runtime.settings.resume_seconds = 0
    async with connect(token=token) as client:
        await client.stream(noise(2))
        assert ready_of(client).resume is None
        client.disconnect()
        await client.wait_ended()
    assert runtime.admission.taken == 0


async def test_the_newest_connection_has_the_session(connect: Connect, runtime: Runtime) -> None:
    """A client is back before the server notices that the old connection is dead."""
    pcm = noise(8)
    async with connect(token=NEW_TOKEN) as client:
        await client.stream(pcm[: 4 * FRAME])
        other, running = await resume(runtime, token_of(client))
        await until(lambda: client.taken_over)
        # The old connection has no effect any more.
        client.disconnect()
        await other.stream(pcm[4 * FRAME :])
        await other.end_audio()
        await running
    assert client.tokens + other.tokens == await offline(runtime, pcm, 9)
    assert other.ended.reason is Reason.COMPLETED


async def test_audio_from_before_is_dropped(connect: Connect, runtime: Runtime) -> None:
    """A client that kept its audio while the connection was lost would be behind for the rest of the call."""
    async with connect(token=NEW_TOKEN) as client:
        await client.stream(noise(3))
        client.disconnect()
        await asyncio.sleep(3)
        other, running = await resume(runtime, token_of(client))
        await other.put(noise(30))
        await other.stream(noise(10))
        assert other.answers[-1].queued <= 2
        await other.end_audio()
        await running
    assert other.ended.summary.dropped_frames == pytest.approx(28, abs=2)


async def test_a_drain_ends_sessions_that_wait(connect: Connect, runtime: Runtime) -> None:
    async with connect(token=NEW_TOKEN) as client:
        await client.stream(noise(2))
        client.disconnect()
        await until(lambda: metric(runtime, "connections_lost_total") == 1)
        began = now()
        await runtime.sessions.begin_drain()
        assert now() - began < 1
    assert metric(runtime, "ended_total", reason="drained") == 1


async def test_in_a_drain_no_session_waits(connect: Connect, runtime: Runtime) -> None:
    async with connect(token=NEW_TOKEN) as client:
        await client.stream(noise(2))
        draining = runtime.sessions.begin_drain()
        client.disconnect()
        await client.wait_ended()
        await draining
    assert metric(runtime, "ended_total", reason="disconnected") == 1


async def test_a_cancelled_handler_is_a_lost_connection(runtime: Runtime) -> None:
    client = Client(reads=True)

    async def handler() -> None:
        async with runtime.live_sessions.open(ANA, SAMPLING, CALLER, token=NEW_TOKEN) as client.session:
            await client.run()

    task = asyncio.create_task(handler())
    await client.wait_frames(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    other, running = await resume(runtime, token_of(client))
    await other.end_audio()
    await running
    assert other.ended.reason is Reason.COMPLETED
    assert runtime.admission.taken == 0
