"""`/api/chat`: messages of a client of the reference server."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from gateway.audio.ogg_opus import OggOpusReader, OggOpusWriter
from tests.gateway.websocket.conftest import FRAME, Server, start
from tests.series import total


def opus_file(pcm: NDArray[np.float32]) -> bytes:
    """An Ogg/Opus file, by libsndfile."""
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm, 24_000, format="OGG", subtype="OPUS")
    return buffer.getvalue()


def ours(stream: bytes) -> NDArray[np.float32]:
    return np.concatenate(list(OggOpusReader().read(stream)))


async def everything(client: ClientConnection) -> list[bytes]:
    """All messages until the close."""
    messages = []
    try:
        async with asyncio.timeout(20):
            while True:
                message = await client.recv()
                assert isinstance(message, bytes)
                messages.append(message)
    except ConnectionClosed:
        pass
    return messages


def of(messages: list[bytes], kind: int) -> list[bytes]:
    return [message[1:] for message in messages if message[0] == kind]


async def test_a_session_from_handshake_to_the_end_of_the_stream(server: Server, noise: Callable[..., Any]) -> None:
    stream = opus_file(noise(5))
    async with server.connect("/api/chat?voice_prompt=NATM1.pt&text_prompt=You+are+Ana.&seed=1") as client:
        for at in range(0, len(stream), 500):
            await client.send(b"\x01" + stream[at : at + 500])
        messages = await everything(client)
    assert client.close_code == 1000
    assert messages[0] == b"\x00"
    audio = b"".join(of(messages, 1))
    spoken, rate = soundfile.read(io.BytesIO(audio))
    assert rate == 24_000
    assert len(of(messages, 1)) == 1 + 1 + -(-len(ours(stream)) // FRAME)
    assert len(spoken) > 5 * FRAME
    assert not of(messages, 5)


async def test_a_url_without_a_query_has_the_defaults_of_the_server(server: Server, noise: Callable[..., Any]) -> None:
    """Full-Duplex-Bench connects so."""
    async with server.connect("/api/chat") as client:
        assert await client.recv() == b"\x00"
        await client.send(b"\x01" + opus_file(noise(5)))
        assert len(of(await everything(client), 1)) > 5
    async with server.connect("/v1/converse") as client:
        await client.send(start())
        await client.recv()
    first, second = server.engine.prefills
    assert first.digest == second.digest


async def test_the_gated_path_sends_audio_only_while_the_agent_speaks(
    server: Server, noise: Callable[..., Any]
) -> None:
    """No head either: a client may take any audio for speech."""
    server.engine.mute, server.engine.floor = True, 80 / 32768
    writer = OggOpusWriter()
    counts = []
    received: list[bytes] = []
    async with server.connect("/gated/api/chat") as client:
        assert await client.recv() == b"\x00"
        await client.send(b"\x01" + writer.head())
        # A burst right after the handshake is stale.
        await asyncio.sleep(1.1)
        for mute in (True, False, True):
            server.engine.mute = mute
            for frame in noise(20).reshape(-1, FRAME):
                await client.send(b"\x01" + writer.write(frame))
            before = len(received)
            with suppress(TimeoutError):
                while True:
                    async with asyncio.timeout(0.3):
                        received.append(bytes(await client.recv()))
            counts.append(len(of(received[before:], 1)))
    # The squelch closes three frames after the last text, which comes a frame late from an engine that falls silent.
    assert counts[0] == 0
    assert counts[1] in (19, 20)
    assert 3 <= counts[2] <= 5
    spoken, rate = soundfile.read(io.BytesIO(b"".join(of(received, 1))))
    assert rate == 24_000
    assert len(spoken) >= (sum(counts) - 1) * FRAME


async def test_older_audio_from_before_the_handshake_is_skipped(serve: Callable[..., Any]) -> None:
    """A client that sent its microphone's audio before the handshake is not as far behind for the whole call."""
    async with serve(delay=0.2) as server, server.connect("/api/chat") as client:
        writer = OggOpusWriter()
        await client.send(b"\x01" + writer.head())
        for _ in range(6):
            await client.send(b"\x01" + writer.write(np.zeros(FRAME, np.float32)))
            await asyncio.sleep(0.08)
        assert await client.recv() == b"\x00"
        server.engine.delay = 0.0
        await client.send(b"\x01" + writer.write(np.zeros(FRAME, np.float32), last=True))
        messages = await everything(client)
        assert client.close_code == 1000
    assert total(server.runtime.metrics, "personaplex_dropped_frames_total", api="chat") >= 2
    # The head, frame 0, and the answers to the latest frames, the last one and the rest that the codec holds back.
    assert len(of(messages, 1)) <= 1 + 1 + 5
