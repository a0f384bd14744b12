"""Python client: `Client` and, for asyncio, `AsyncClient`. Both can respond, stream, converse, voices and ready.

with Client("http://127.0.0.1:8998") as client:
    answer = client.respond(Path("question.wav").read_bytes(), voice="NATF0")

async with AsyncClient("http://127.0.0.1:8998") as client, client.converse(voice="NATF0") as conversation:
    await conversation.send(pcm)
    async for event in conversation:
        ...
"""

from __future__ import annotations

from gateway.client.answers import Answer, LiveParams, RespondParams
from gateway.client.asynchronous import AsyncClient, AsyncConversation
from gateway.client.events import AgentAudio, AgentText, Ended, Event, Ready, Stats, Warning
from gateway.client.http import ClientError, ServerBusyError
from gateway.client.synchronous import Client, Conversation

__all__ = [
    "AgentAudio",
    "AgentText",
    "Answer",
    "AsyncClient",
    "AsyncConversation",
    "Client",
    "ClientError",
    "Conversation",
    "Ended",
    "Event",
    "LiveParams",
    "Ready",
    "RespondParams",
    "ServerBusyError",
    "Stats",
    "Warning",
]
