"""The lists of voices and prompts."""

from __future__ import annotations

import httpx

from gateway.settings import Settings


async def test_the_voices_are_the_repositorys(client: httpx.AsyncClient, settings: Settings):
    body = (await client.get("/v1/voices")).json()
    assert body == {
        "default": "NATF0",
        "voices": [{"name": "NATF0", "seconds": 0.4}, {"name": "NATM1", "seconds": 0.56}],
        "voice_audio": False,
    }
    settings.allow_voice_audio = True
    assert (await client.get("/v1/voices")).json()["voice_audio"] is True


async def test_a_default_voice_that_is_not_there_gives_way_to_the_first(client: httpx.AsyncClient, settings: Settings):
    settings.default_voice = "NATF9"
    assert (await client.get("/v1/voices")).json()["default"] == "NATF0"


async def test_the_prompts_come_with_their_texts(client: httpx.AsyncClient):
    body = (await client.get("/v1/system-prompts")).json()
    assert body["default"] == "assistant"
    assert len(body["system_prompts"]) == 8
    assert all(prompt["text"] for prompt in body["system_prompts"])
