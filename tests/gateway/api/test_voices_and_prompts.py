"""The lists of voices and prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import numpy as np

from gateway.engine.fake import FakeBackend
from gateway.manifest import Manifest
from gateway.session.persona import preset_of_codes
from gateway.settings import Settings
from gateway.voices.registry import VoiceRegistry
from gateway.voices.store import VoiceStore

Ask = Callable[..., Any]


async def test_voices_are_those_of_the_repository(client: httpx.AsyncClient, settings: Settings):
    body = (await client.get("/v1/voices")).json()
    assert body == {
        "default": "NATF0",
        "voices": [
            {"name": "NATF0", "seconds": 0.4, "origin": "built-in"},
            {"name": "NATM1", "seconds": 0.56, "origin": "built-in"},
        ],
        "voice_audio": False,
    }
    settings.allow_voice_audio = True
    assert (await client.get("/v1/voices")).json()["voice_audio"] is True


async def test_added_replaced_and_removed_voices_are_visible_at_once(
    client: httpx.AsyncClient, ask: Ask, manifest: Manifest, engine: FakeBackend
):
    """In the list, in the OpenAPI document and in responses."""
    assert (await ask(voice="ANA")).json()["type"] == "urn:personaplex:unknown-voice"
    for seed, frames in ((1, 50), (2, 75)):
        made = preset_of_codes(np.random.default_rng(seed).integers(0, 2048, (frames, 8)), manifest)
        VoiceStore(VoiceRegistry(manifest)).add("ANA", made, "recording", force=True)
        listed = (await client.get("/v1/voices")).json()["voices"]
        assert listed[2:] == [{"name": "ANA", "seconds": frames * 0.08, "origin": "added"}]
        assert (await ask(voice="ANA")).json()["voice"] == "ANA"
        columns, embeddings = engine.prefills[-1].steps, engine.prefills[-1].embeddings
        assert np.array_equal(columns[:frames], made.columns[:-1])
        assert embeddings.shape == (0, 32)
        assert await names_in_the_document(client) == ["NATF0", "NATM1", "ANA"]
    VoiceStore(VoiceRegistry(manifest)).remove("ANA")
    assert (await ask(voice="ANA")).status_code == 422
    assert len((await client.get("/v1/voices")).json()["voices"]) == 2
    assert await names_in_the_document(client) == ["NATF0", "NATM1"]


async def names_in_the_document(client: httpx.AsyncClient) -> list[str]:
    body = (await client.get("/openapi.json")).json()["paths"]["/v1/respond"]["post"]["requestBody"]
    kinds = [content["schema"]["properties"]["voice"] for content in body["content"].values()]
    names: list[str] = kinds[0]["enum"]
    assert names == kinds[1]["anyOf"][0]["enum"]
    return names


async def test_a_broken_voice_fails_only_its_own_requests(client: httpx.AsyncClient, ask: Ask, manifest: Manifest):
    (manifest.voices_folder / "NATF0.safetensors").write_bytes(b"oops")
    listed = (await client.get("/v1/voices")).json()
    assert [voice["name"] for voice in listed["voices"]] == ["NATM1"]
    assert listed["default"] == "NATM1"
    answer = await ask(voice="NATF0")
    assert answer.status_code == 500
    assert answer.json()["detail"].startswith("voices/NATF0.safetensors cannot be read: ")
    assert (await ask(voice="NATM1")).status_code == 200


async def test_without_any_voice_the_error_states_it(client: httpx.AsyncClient, ask: Ask, manifest: Manifest):
    for file in manifest.voices_folder.iterdir():
        file.unlink()
    assert (await client.get("/v1/voices")).json()["voices"] == []
    answer = await ask()
    assert (answer.status_code, answer.json()["detail"]) == (422, "no voice named 'NATF0'; there are: none")


async def test_a_missing_default_voice_is_replaced_by_the_first(client: httpx.AsyncClient, settings: Settings):
    settings.default_voice = "NATF9"
    assert (await client.get("/v1/voices")).json()["default"] == "NATF0"


async def test_prompts_are_listed_with_their_texts(client: httpx.AsyncClient):
    body = (await client.get("/v1/system-prompts")).json()
    assert body["default"] == "assistant"
    assert len(body["system_prompts"]) == 8
    assert all(prompt["text"] for prompt in body["system_prompts"])
