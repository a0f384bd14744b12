"""The OpenAPI document matches the server, and no request that it allows makes the server fail."""

from __future__ import annotations

import base64
from collections import Counter
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from tests.effort import effort


@pytest.fixture
def document(app: FastAPI) -> dict[str, Any]:
    return app.openapi()


def test_every_reference_resolves(document: dict[str, Any]):
    def references(node: Any) -> set[str]:
        if isinstance(node, dict):
            found = {node["$ref"]} if "$ref" in node else set()
            return found.union(*(references(value) for value in node.values()))
        return set().union(*(references(value) for value in node)) if isinstance(node, list) else set()

    schemas = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert references(document) <= schemas


def test_both_bodies_have_the_same_fields(document: dict[str, Any]):
    content = document["paths"]["/v1/respond"]["post"]["requestBody"]["content"]
    form, json = (content[kind]["schema"] for kind in ("multipart/form-data", "application/json"))
    assert set(form["properties"]) == set(json["properties"])
    assert form["required"] == json["required"] == ["audio"]
    assert form["additionalProperties"] is json["additionalProperties"] is False
    assert form["properties"]["audio"]["format"] == "binary"
    assert json["properties"]["audio"]["contentEncoding"] == "base64"


def test_names_defaults_and_limits_match_the_repository(document: dict[str, Any]):
    fields = document["paths"]["/v1/respond"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    properties = fields["properties"]
    assert properties["voice"]["enum"] == ["NATF0", "NATM1"]
    assert properties["voice"]["default"] == "NATF0"
    assert len(properties["system_prompt"]["enum"]) == 8
    assert properties["max_steps"]["maximum"] == 400
    assert {name: properties[name]["default"] for name in properties if "t" in name and "top_k" in name} == {
        "audio_top_k": 250,
        "text_top_k": 25,
    }
    assert properties["audio_temperature"]["default"] == 0.8


async def test_documented_headers_of_a_wav_are_sent(client: httpx.AsyncClient, document: dict[str, Any]):
    operation = document["paths"]["/v1/respond"]["post"]
    example = operation["requestBody"]["content"]["application/json"]["example"]
    answer = await client.post("/v1/respond", json={**example, "keep": True})
    headers = operation["responses"]["200"]["headers"]
    assert set(headers) == {"X-PersonaPlex-Seed", "X-PersonaPlex-Conversation"}
    assert all(name in answer.headers for name in headers)
    ended = await client.delete(f"/v1/conversations/{answer.headers['X-PersonaPlex-Conversation']}")
    assert ended.status_code == 204


async def test_the_example_is_accepted(client: httpx.AsyncClient, document: dict[str, Any]):
    example = document["paths"]["/v1/respond"]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert base64.b64decode(example["audio"]).startswith(b"RIFF")
    assert (await client.post("/v1/respond", json=example)).status_code == 200


def test_problems_are_documented_with_their_kind(document: dict[str, Any]):
    responses = document["paths"]["/v1/respond"]["post"]["responses"]
    for status in ("400", "403", "413", "415", "422", "502", "503"):
        assert list(responses[status]["content"]) == ["application/problem+json"]
    assert "Retry-After" in responses["503"]["headers"]
    assert set(responses["200"]["content"]) == {"audio/wav", "application/json"}


@pytest.mark.parametrize(("accept", "cases"), [("audio/wav", effort(25, 500)), ("application/json", effort(15, 200))])
@pytest.mark.effort
def test_the_server_conforms_to_its_document(app: FastAPI, accept: str, cases: int):
    """Schemathesis: examples, random bodies that fit and that do not; long: boundary values, wrong methods."""
    # Imported here because the import takes long and every worker imports this file.
    import schemathesis
    from schemathesis.config import HealthCheck
    from schemathesis.engine import events, from_schema

    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    schema.config.headers = {"Accept": accept}
    schema.config.generation.max_examples = cases
    schema.config.generation.deterministic = True
    # A busy machine is slow.
    schema.config.suppress_health_check = [HealthCheck.too_slow]
    # Boundary values take most of the time.
    schema.config.phases.coverage.enabled = effort(False, True)
    # A schema cannot express whether bytes are audio, or that two fields exclude each other: a valid body may
    # fit it and still be answered with 422, or with 403 where the operator has not switched a field on.
    accepted = schema.config.checks.positive_data_acceptance
    accepted.expected_statuses = [*accepted.expected_statuses, "422"]
    tested: Counter[str] = Counter()
    failures: list[str] = []
    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            tested[event.recorder.label] += len(event.recorder.cases)
            for checks in event.recorder.checks.values():
                failures += [
                    f"{event.recorder.label}: {node.failure_info.failure}" for node in checks if node.failure_info
                ]
        if isinstance(event, events.NonFatalError):
            # Schemathesis wraps generated files in a type of its own. Now and then it passes one to jsonschema-rs
            # unwrapped, which reads JSON types only. The generator fails then, not the server.
            assert str(event.value).lower() == "unsupported type: 'binary'", event
        assert not isinstance(event, events.FatalError), event
    assert failures == []
    for label in ("GET /v1/voices", "GET /v1/system-prompts", "GET /healthz", "GET /readyz", "GET /metrics"):
        assert tested[label] > 0
    assert tested["POST /v1/respond"] >= cases
