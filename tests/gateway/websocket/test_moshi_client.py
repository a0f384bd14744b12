"""The client from PyPI gets the same response as a recording of its Opus stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gateway.api.connection import Connection
from gateway.api.websocket.chat import ChatTransport
from gateway.audio.ogg_opus import OggOpusReader, OggOpusWriter
from gateway.session import request
from gateway.session.events import AgentAudio, Event
from tests.gateway.websocket.conftest import Server
from tests.gateway.websocket.moshi import FRAME, Conversation, client_module

SEED = 11


class Recording:
    """Records what the client and the server send."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stream: list[bytes] = []
        self.agent: list[AgentAudio] = []
        receive, send = Connection.receive, ChatTransport.send

        async def record_receive(connection: Connection) -> str | bytes:
            message = await receive(connection)
            assert isinstance(message, bytes)
            self.stream.append(message[1:])
            return message

        async def record_send(transport: ChatTransport, event: Event) -> None:
            await send(transport, event)
            if isinstance(event, AgentAudio):
                self.agent.append(event)

        monkeypatch.setattr(Connection, "receive", record_receive)
        monkeypatch.setattr(ChatTransport, "send", record_send)
        # The client cannot choose a seed.
        monkeypatch.setattr(request.secrets, "randbits", lambda _bits: SEED)

    @property
    def texts(self) -> list[str]:
        return [event.frame.text for event in self.agent if event.frame.text]


async def test_a_conversation(server: Server, monkeypatch: pytest.MonkeyPatch, noise: Callable[..., Any]) -> None:
    client_module()
    frames = 30
    recording = Recording(monkeypatch)
    conversation = Conversation(noise(frames))
    client = conversation.running(server.url.replace("ws", "http", 1))
    await asyncio.to_thread(client.__enter__)
    async with asyncio.timeout(30):
        # The client's pre-skip is one frame; the response begins with one frame of silence.
        while len(recording.agent) < frames or len(conversation.printer.tokens) < len(recording.texts):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await asyncio.to_thread(client.__exit__, None, None, None)
    spoken = [event.frame for event in recording.agent]

    received = np.concatenate(list(OggOpusReader().read(b"".join(recording.stream))))
    assert len(received) == (frames - 1) * FRAME
    answer = await server.offline(received, frames, seed=SEED, include=["tokens"])
    assert [frame.text_token for frame in spoken] == answer["text_tokens"]
    assert [frame.codes.tolist() for frame in spoken] == answer["agent_codes"]
    assert conversation.printer.tokens == recording.texts
    assert np.isfinite(conversation.device.played).all()


def test_both_decoders_agree(noise: Callable[..., Any]) -> None:
    """Both sides decode each other's pages to the same samples."""
    client_module()
    import sphn

    writer = OggOpusWriter()
    pcm = noise(20).reshape(-1, FRAME)
    ours = writer.head() + b"".join(writer.write(frame) for frame in pcm)
    theirs = sphn.OpusStreamWriter(24_000)
    stream = b"".join(theirs.append_pcm(frame) for frame in pcm)
    for data, skip in ((ours, 156), (stream, FRAME)):
        reader = sphn.OpusStreamReader(24_000)
        by_them = np.concatenate([reader.append_bytes(data[at : at + 100]) for at in range(0, len(data), 100)])
        by_us = np.concatenate(list(OggOpusReader().read(data)))
        assert len(by_them) == len(pcm) * FRAME
        assert by_us == pytest.approx(by_them[skip:], abs=1e-3)
