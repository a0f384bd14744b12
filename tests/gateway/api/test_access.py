"""API keys over HTTP, and which pages may call."""

from __future__ import annotations

import asyncio

import pytest

from gateway.api.access import origin_allowed
from gateway.settings import Settings
from tests.gateway.api.problems import problem

KEYS = ["first-key", "second-key"]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"api_keys": KEYS, "key_conversations": 1})


@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": "Bearer wrong"}, {"authorization": "Basic first-key"}, {"x-api-key": "first-keyy"}],
)
async def test_requests_without_a_valid_key_are_rejected(ask, client, app, headers):
    client.headers.update(headers)
    for answer in (
        await ask(),
        await client.get("/v1/voices"),
        await client.get("/v1/system-prompts"),
        await client.delete("/v1/conversations/x"),
    ):
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["content-type"] == "application/problem+json"
    assert app.state.runtime.admission.taken == 0


@pytest.mark.parametrize("headers", [{"authorization": "bearer second-key"}, {"x-api-key": "first-key"}])
async def test_a_valid_key_is_accepted(ask, client, headers):
    client.headers.update(headers)
    assert (await ask()).status_code == 200


async def test_probes_and_metrics_need_no_key(client):
    for path in ("/healthz", "/readyz", "/metrics"):
        assert (await client.get(path)).status_code == 200


async def test_a_key_is_limited_to_its_number_of_conversations(ask, client, engine):
    client.headers["x-api-key"] = "first-key"
    kept = (await ask(keep=True)).json()["conversation_id"]
    answer = await ask()
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "7"
    client.headers["x-api-key"] = "second-key"
    assert (await ask()).status_code == 200
    assert (await ask(conversation_id=kept)).status_code == 404, "the conversation belongs to another key"
    client.headers["x-api-key"] = "first-key"
    assert (await client.delete(f"/v1/conversations/{kept}")).status_code == 204
    assert (await ask()).status_code == 200


async def test_draining_rejects_new_conversations_and_completes_others(ask, client, engine, app):
    client.headers["x-api-key"] = "first-key"
    engine.delay = 0.02
    under_way = asyncio.create_task(ask())
    await asyncio.sleep(0.05)
    app.state.runtime.sessions.begin_drain()
    assert (await client.get("/readyz")).status_code == 503
    assert (await client.get("/healthz")).status_code == 200
    client.headers["x-api-key"] = "second-key"
    refused = await ask()
    assert refused.status_code == 503
    assert "shutting down" in refused.json()["detail"]
    assert (await under_way).status_code == 200
    assert app.state.runtime.admission.taken == 0


FOREIGN = ["https://elsewhere.example", "https://gateway.elsewhere.example", "null", "http://["]


@pytest.mark.parametrize("origin", FOREIGN)
async def test_other_origins_are_rejected(ask, client, app, origin):
    client.headers["x-api-key"] = "first-key"
    kept = (await ask(keep=True)).json()["conversation_id"]
    client.headers["origin"] = origin
    for answer in (
        await ask(),
        await client.post("/v1/respond"),
        await client.delete(f"/v1/conversations/{kept}"),
    ):
        body = problem(answer, 403, "not-allowed")
        assert body["detail"] == f"pages of {origin} may not call here"
    assert app.state.runtime.admission.taken == 1


@pytest.mark.parametrize("origin", ["http://gateway", "https://named.example"])
async def test_own_and_allowed_origins_are_accepted(ask, client, settings, origin):
    settings.allowed_origins = ["https://named.example"]
    client.headers["x-api-key"] = "first-key"
    client.headers["origin"] = origin
    kept = (await ask(keep=True)).json()["conversation_id"]
    assert (await client.delete(f"/v1/conversations/{kept}")).status_code == 204


@pytest.mark.parametrize(
    ("origin", "host", "allowed", "expected"),
    [
        (None, "a.example", [], True),
        ("https://a.example", "a.example", [], True),
        ("http://localhost:8998", "localhost:8998", [], True),
        ("https://evil.example", "a.example", [], False),
        ("https://a.example.evil.example", "a.example", [], False),
        ("null", "a.example", [], False),
        ("null", "", [], False),
        ("http://[", "a.example", [], False),
        ("https://b.example", "a.example", ["https://b.example"], True),
        ("https://c.example", "a.example", ["*"], True),
    ],
)
def test_origins(origin, host, allowed, expected):
    assert origin_allowed(origin, host, allowed) is expected


async def test_without_a_key_the_document_lists_no_voices(client):
    for path in ("/openapi.json", "/docs"):
        without = await client.get(path)
        assert without.status_code == 200
        assert "NATF0" not in without.text
        named = await client.get(path, headers={"x-api-key": "first-key"})
        assert "NATF0" in named.text
        assert "NATM1" in named.text


async def test_the_documentation_page_loads_no_external_resources(client):
    page = await client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "<script" not in page.text
    assert "//" not in page.text.replace("<!doctype html>", "")
    for words in ("POST /v1/respond", "multipart/form-data", "max_steps", "application/problem+json"):
        assert words in page.text
