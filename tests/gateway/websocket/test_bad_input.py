"""Random messages to both WebSocket APIs: no internal error, no hang, no slot lost; 1000 sessions each, one server."""

from __future__ import annotations

import asyncio
import json
import logging
import struct
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from threading import Thread
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as tuned
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from gateway.api.websocket.chat import GATED_PATH, PATH
from gateway.audio.ogg import OggWriter
from gateway.audio.ogg_opus import OggOpusWriter
from tests.effort import effort
from tests.gateway.websocket.conftest import END, FRAME, Server, start

CASES = effort(80, 1000)
LIMIT = 20_000
INTERNAL_ERROR = 1011

anything = tuned(
    max_examples=CASES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    # No shrinking: it would take hundreds of sessions more.
    phases=tuned.default.phases[:3],
)

Message = str | bytes
Run = Callable[[Coroutine[Any, Any, Any]], Any]


class Host:
    """A server in a thread of its own, for tests that are not asynchronous."""

    def __init__(self, server: Server, run: Run) -> None:
        self.server = server
        self.run = run


@contextmanager
def loop_in_thread() -> Iterator[Run]:
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever)
    thread.start()
    try:
        yield lambda work: asyncio.run_coroutine_threadsafe(work, loop).result(60)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture
def host(serve: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> Iterator[Host]:
    with ExitStack() as held, caplog.at_level(logging.WARNING):
        run = held.enter_context(loop_in_thread())
        served = serve(slots=4, max_message_bytes=LIMIT, handshake_seconds=0.5, idle_seconds=0.3)
        server = run(served.__aenter__())
        held.callback(lambda: run(served.__aexit__(None, None, None)))
        yield Host(server, run)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


async def call(server: Server, path: str, messages: list[Message], patient: bool) -> tuple[list[Message], int | None]:
    """Send all messages, then wait for the close or disconnect; return the received messages and the close code."""
    received: list[Message] = []
    code = None
    async with asyncio.timeout(10):
        client: ClientConnection = await server.connect(path, close_timeout=1, ping_interval=None)
        with suppress(ConnectionClosed):
            for message in messages:
                await client.send(message)
        try:
            while patient:
                received.append(await client.recv())
        except ConnectionClosed:
            code = client.close_code
        client.transport.abort()
        while server.runtime.admission.taken:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert server.engine.opened == server.engine.closed
    return received, code


@cache
def json_like() -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    keys = st.text(max_size=8)
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=8
    )


NAMES = [
    "type", "voice", "system_prompt", "text_prompt", "greedy", "seed", "audio_temperature", "audio_top_k",
    "text_temperature", "text_top_k", "on_gap", "audio", "unknown",
]  # fmt: skip

starts = st.one_of(
    st.just(start()),
    st.just(start(on_gap="silence", audio={"format": "pcm_f32le", "sample_rate": 8000})),
    st.sampled_from([start(audio={"format": "pcm_f32le"}), start(audio={"sample_rate": 192_000})]),
    st.dictionaries(st.sampled_from(NAMES), json_like(), max_size=4).map(lambda fields: start(**fields)),
    st.dictionaries(st.sampled_from(["format", "sample_rate", "x"]), json_like()).map(lambda audio: start(audio=audio)),
)
texts = st.one_of(
    st.just(END),
    starts,
    st.text(max_size=50),
    json_like().map(json.dumps),
    st.sampled_from(['{"type":"end","x":1}', '{"type":"stop"}', "[" * 5000, '{"type":"start","voice":"\\ud800"}', ""]),
)
pcm = st.one_of(
    st.binary(max_size=200),
    st.integers(0, 4 * FRAME).map(bytes),
    st.lists(st.floats(width=32), max_size=20).map(lambda values: np.array(values, "<f4").tobytes()),
    st.sampled_from([bytes(LIMIT), bytes(LIMIT + 1), bytes(3 * LIMIT)]),
)


@pytest.mark.effort
@anything
@given(st.one_of(starts, texts, pcm), st.lists(st.one_of(pcm, pcm, texts), max_size=5), st.booleans(), st.booleans())
def test_converse(host: Host, first: Message, then: list[Message], ends: bool, patient: bool) -> None:
    messages = [first, *then, *([END] if ends else [])]
    received, code = host.run(call(host.server, "/v1/converse", messages, patient and ends))
    if not (patient and ends) or code is None:
        return
    assert code in {1000, 1001, 1003, 1007, 1008, 1009}
    messages_of_json = [json.loads(message) for message in received if isinstance(message, str)]
    kinds = [message["type"] for message in messages_of_json]
    if code == 1000:
        assert kinds[0] == "ready"
        assert kinds[-1] == "ended"
    elif code in {1003, 1007}:
        assert "error" in kinds
        (error,) = [message for message in messages_of_json if message["type"] == "error"]
        assert error["code"] not in {"internal-error", "engine-error"}
        assert error["message"]


def pages() -> st.SearchStrategy[list[bytes]]:
    """Kind 1 messages: a right stream, then damaged here and there, cut anywhere."""
    writer = OggOpusWriter()
    noise = np.random.default_rng(1).uniform(-0.3, 0.3, (6, FRAME)).astype(np.float32)
    right = [writer.head(), *(writer.write(frame) for frame in noise)]
    heads = st.tuples(
        st.integers(0, 255), st.integers(0, 255), st.integers(0, 65535), st.integers(-32768, 32767), st.integers(0, 2)
    )

    def headed(values: tuple[int, int, int, int, int]) -> bytes:
        version, channels, skip, gain, family = values
        return OggWriter(42).page(
            struct.pack("<8sBBHIhB", b"OpusHead", version, channels, skip, 24_000, gain, family), 0
        )

    def damaged(values: tuple[list[bytes], int, int]) -> list[bytes]:
        stream, at, flip = values
        made = bytearray(b"".join(stream))
        made[at % len(made)] ^= flip
        return [bytes(made)]

    def packed(packets: list[bytes]) -> list[bytes]:
        made = OggWriter(42)
        made.page(b"", 0)
        return [right[0], *(made.page(packet, 0) for packet in packets)]

    def cut(values: tuple[list[bytes], int]) -> list[bytes]:
        stream, size = b"".join(values[0]), values[1]
        return [stream[at : at + size] for at in range(0, len(stream), size)][:20]

    streams = st.one_of(
        st.just(right),
        st.integers(0, 2000).map(lambda end: [b"".join(right)[:end]]),
        st.permutations(right).map(list),
        st.tuples(st.just(right), st.integers(0, 2000), st.integers(1, 255)).map(damaged),
        st.lists(st.binary(max_size=300), max_size=5).map(packed),
        heads.map(lambda values: [headed(values), *right[1:]]),
        heads.map(lambda values: [headed(values), right[0][len(right[0]) // 2 :]]),
        st.lists(st.binary(max_size=100), max_size=3),
    )
    return st.one_of(streams, st.tuples(streams, st.integers(40, 500)).map(cut)).map(
        lambda stream: [b"\x01" + part for part in stream]
    )


others = st.lists(
    st.one_of(
        st.binary(max_size=50),
        st.integers(0, 255).map(lambda kind: bytes([kind]) * 3),
        st.text(max_size=20),
        st.sampled_from([b"", b"\x01", b"\x01OggS", b"\x01" * LIMIT, b"\x01" * (LIMIT + 1)]),
    ),
    max_size=3,
)
queries = st.one_of(
    st.just({}),
    st.just({"voice_prompt": "NATM1.pt", "text_prompt": "", "text_temperature": "0.7", "text_topk": "25"}),
    st.dictionaries(
        st.sampled_from(
            ["voice_prompt", "text_prompt", "seed", "text_seed", "audio_seed", "text_topk", "audio_topk", "pad_mult",
             "text_temperature", "audio_temperature", "repetition_penalty", "x"]
        ),
        st.one_of(st.text(max_size=20), st.integers().map(str), st.floats().map(str)),
        max_size=3,
    ),
)  # fmt: skip


@pytest.mark.effort
@anything
@given(st.sampled_from([PATH, GATED_PATH]), queries, others, pages(), others, st.booleans())
def test_chat(
    host: Host,
    path: str,
    query: dict[str, str],
    before: list[Message],
    stream: list[bytes],
    after: list[Message],
    patient: bool,
) -> None:
    end = OggWriter(42).page(b"", 0, last=True)
    messages = [*before, *stream, *after, b"\x01" + end]
    path += "?" + urlencode(query, errors="replace")
    # An end within an incomplete page is not recognized: the idle limit would end the session.
    waits = patient and len(stream) == 7
    received, code = host.run(call(host.server, path, messages, waits))
    assert code != INTERNAL_ERROR
    if code == 1000:
        assert received[0] == b"\x00"
    elif code in {1003, 1007} and waits:
        (error,) = [message for message in received if message[:1] == b"\x05"]
        assert len(error) > 1
