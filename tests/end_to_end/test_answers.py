"""Unmodified clients ask the small speaking model a question, in real time through Triton.

Its answer is one generation for each of them, which opens and closes with the agent's speech.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from model_repository.synthetic.speaking.export import QUESTION
from tests.clients.conftest import chat_texts, python_of, realtime_texts, run_client, run_node, spoken
from tests.end_to_end.conftest import Service

__all__ = ["chat_texts", "realtime_texts", "spoken"]

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

ANSWER = "The capital of France is Paris."
SECONDS = 10.0
LIVE, REALTIME = "/v1/live/sessions", "/v1/realtime"


@dataclass
class Received:
    """What a client has received. generations: the text of each, which has ended. everything: what it printed."""

    generations: list[str]
    everything: dict[str, Any] = field(default_factory=dict)

    @property
    def audio_seconds(self) -> float:
        seconds: float = self.everything["audio_seconds"]
        return seconds


async def livekit(service: Service, kind: str) -> Received:
    found = await run_client(python_of("livekit"), "livekit_session.py", kind, service.url + "/v1", QUESTION, SECONDS)
    assert found["bursts"] == 1
    assert found["states"] == ["listening", "speaking", "listening"]
    assert found["close_seconds"] < 1
    return Received([text for role, text in found["items"] if role == "assistant"], found)


async def pipecat(service: Service, kind: str) -> Received:
    url = service.url.replace("http", "ws", 1) + {"live": LIVE, "realtime": REALTIME}[kind]
    found = await run_client(python_of("pipecat"), "pipecat_pipeline.py", kind, url, QUESTION, SECONDS)
    assert found["bot"] == ["started", "stopped"]
    return Received(found["assistant"], found)


async def openai_agents(service: Service, language: str) -> Received:
    url = service.url.replace("http", "ws", 1) + REALTIME
    if language == "python":
        found = await run_client(python_of("openai_agents"), "openai_agents.py", url, QUESTION, SECONDS)
    else:
        found = await run_node("openai_agents.mjs", url, QUESTION, SECONDS)
    assert found["bursts"] == 1
    return Received(found["assistant"], found)


async def openai_node(service: Service, _: str) -> Received:
    found = await run_node("openai_live.mjs", service.url + "/v1", QUESTION, SECONDS)
    assert (found["closed"], found["code"]) == ("close_requested", 1000)
    assert [reason for _, reason in found["segments"]] == ["inactivity"]
    return Received([text for text, _ in found["segments"]], found)


async def pydantic_ai(service: Service, _: str) -> Received:
    url = service.url + "/v1"
    found = await run_client(python_of("pydantic_ai"), "pydantic_ai_live.py", url, QUESTION, SECONDS)
    errors = [event for event in found["events"] if "Error" in event]
    return Received(
        [text for speaker, text in found["transcripts"] if speaker == "assistant"],
        {**found, "errors": errors + found["failures"]},
    )


async def livekit_nvidia(service: Service, _: str) -> Received:
    url = service.url.replace("http", "ws", 1) + "/gated"
    found = await run_client(python_of("livekit"), "livekit_nvidia.py", url, QUESTION, SECONDS)
    ended = [generation for generation in found["generations"] if generation["ended"]]
    assert ended == found["generations"]
    seconds = sum(generation["seconds"] for generation in ended)
    return Received([generation["text"] for generation in ended], {**found, "audio_seconds": seconds})


CLIENTS = [
    (livekit, "live"), (livekit, "realtime"), (pipecat, "live"), (pipecat, "realtime"), (openai_node, "live"),
    (pydantic_ai, "live"), (openai_agents, "python"), (openai_agents, "js"), (livekit_nvidia, "gated"),
]  # fmt: skip
CONTINUOUS = [(pipecat, "live"), (openai_node, "live")]
"""Clients that play the silence too."""


@pytest.mark.parametrize(("client", "kind"), CLIENTS, ids=[f"{client.__name__}-{kind}" for client, kind in CLIENTS])
async def test_an_answer_is_one_generation(
    speaking_service: Service,
    spoken: list[str],
    realtime_texts: list[str],
    chat_texts: list[str],
    client: Any,
    kind: str,
) -> None:
    received = await client(speaking_service, kind)
    began = time.monotonic()
    await asyncio.to_thread(speaking_service.wait_until_free, 1)
    assert time.monotonic() - began < 1
    assert received.everything["errors"] == []
    assert [text.strip() for text in received.generations] == [ANSWER]
    assert "".join([*spoken, *realtime_texts, *chat_texts]).strip() == ANSWER
    if (client, kind) in CONTINUOUS:
        assert received.audio_seconds == pytest.approx(received.everything["seconds"], rel=0.05)
    else:
        # The speech, and up to 0.8 s of silence that ends it.
        assert 1.5 < received.audio_seconds < 3.5
