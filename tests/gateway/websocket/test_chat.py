"""`/api/chat`: messages of a client of the reference server."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from gateway.audio.ogg_opus import OggOpusReader
from tests.gateway.websocket.conftest import FRAME, Server


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
