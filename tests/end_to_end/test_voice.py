"""A voice added from a recording while the service runs: available at once on every API, with equal tokens."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from websockets.asyncio.client import connect

from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.api.grpc.personaplex.v1 import personaplex_pb2_grpc as pb_grpc
from gateway.cli import run
from tests.conftest import GOLDEN
from tests.end_to_end.conftest import Service, respond, serve

RECORDING = Path(__file__).parents[1] / "data" / "question.wav"
USER = (GOLDEN / "user.wav").read_bytes()


def voice(*arguments: object) -> int:
    """`personaplex voice …`; its exit code."""
    return run(["voice", *map(str, arguments)])


@pytest.fixture(scope="module")
def models(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny models, so that tests may change its voices."""
    return shutil.copytree(tiny_models, tmp_path_factory.mktemp("voices") / "models")


@pytest.fixture(scope="module")
def service(models: Path) -> Iterator[Service]:
    with serve(models, allow_voice_audio=True) as service:
        yield service


@pytest.fixture(scope="module")
def added(service: Service, models: Path) -> bytes:
    """The file of a voice added to the models that are being served."""
    assert voice("add", models, "ANA", RECORDING) == 0
    return (models / "voices" / "ANA.safetensors").read_bytes()


@pytest.fixture
def ana(models: Path, added: bytes) -> str:
    """The added voice, which an earlier test may have removed."""
    (models / "voices" / "ANA.safetensors").write_bytes(added)
    return "ANA"


@pytest.mark.parametrize(
    "asked", [{"text_prompt": "", "seed": 11}, {"text_prompt": "You are a wise and friendly teacher.", "greedy": True}]
)
def test_a_voice_gives_the_tokens_of_its_recording(service: Service, ana: str, asked: dict[str, Any]):
    """Greedy and sampled; another voice gives other tokens."""
    recording = base64.b64encode(RECORDING.read_bytes()).decode()
    with service.client() as client:
        by_name = respond(client, USER, voice=ana, max_steps=40, **asked)
        by_recording = respond(client, USER, voice_audio=recording, max_steps=40, **asked)
        other = respond(client, USER, voice="NATF0", max_steps=40, **asked)
    assert by_name.same_as(by_recording)
    assert by_name.body["frames"] == 40
    assert not by_name.same_as(other)


def test_a_running_service_lists_added_and_removed_voices(service: Service, models: Path, ana: str):
    with service.client() as client:
        assert names(client)["ANA"] == "added"
        assert voice("remove", models, ana) == 0
        assert set(names(client).values()) == {"built-in"}
        body = {"audio": base64.b64encode(USER).decode(), "voice": ana}
        assert client.post("/v1/respond", json=body).json()["type"] == "urn:personaplex:unknown-voice"
        assert voice("add", models, ana, RECORDING) == 0
        assert client.post("/v1/respond", json={**body, "max_steps": 2}).status_code == 200


def names(client: httpx.Client) -> dict[str, str]:
    return {one["name"]: one["origin"] for one in client.get("/v1/voices").json()["voices"]}


def test_grpc_and_websocket_accept_it(service: Service, ana: str):
    with grpc.insecure_channel(service.grpc_target) as channel:
        stub = pb_grpc.PersonaPlexStub(channel)
        answer = stub.Respond(pb.RespondRequest(audio=USER, voice=ana, max_steps=2))
    assert answer.voice == ana

    async def ready() -> str:
        url = service.url.replace("http", "ws") + "/v1/converse"
        async with connect(url, proxy=None) as socket:
            await socket.send(json.dumps({"type": "start", "voice": ana}))
            event = json.loads(await socket.recv())
            assert event["type"] == "ready", event
            return event["voice"]

    assert asyncio.run(ready()) == ana


def test_a_conversation_outlives_its_voice(service: Service, models: Path, ana: str):
    """The turns of a conversation whose voice is removed after the first are those of one whose voice stays."""
    with service.client() as client:

        def two_turns(between: object = None) -> list[np.ndarray]:
            asked = {"greedy": True, "max_steps": 20}
            first = respond(client, USER, voice=ana, keep=True, **asked)
            if between is not None:
                assert voice("remove", models, ana) == 0
            going_on = {"conversation_id": first.body["conversation_id"], "max_steps": 20, "keep": False}
            return [first.agent_codes, respond(client, USER, **going_on).agent_codes]

        expected, found = two_turns(), two_turns(between="removed")
        assert "ANA" not in names(client)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)
