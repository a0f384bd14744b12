"""A call can be followed by its id through log, trace and metrics, over each kind of API."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from fastapi import FastAPI
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.api.grpc.personaplex.v1.personaplex_pb2_grpc import PersonaPlexStub
from gateway.app import create_app
from gateway.audio.wav import wav
from gateway.engine.fake import FakeBackend
from gateway.manifest import Manifest
from gateway.settings import Settings
from gateway.telemetry.logs import add_request, formatter

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
REQUEST = "ticket-7"
HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": REQUEST, "x-api-key": "sesame"}
FRAMES = 4


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def app(models: Path, manifest: Manifest, engine: FakeBackend, spans: InMemorySpanExporter) -> FastAPI:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    settings = Settings(models=models, live_speed=0, api_keys=["sesame"], grpc_port=0, trace_frame_interval=2)
    return create_app(settings, engine, manifest, provider)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client


@pytest.fixture
def log() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Returns the log's lines."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(add_request)
    handler.setFormatter(formatter("json"))
    logger = logging.getLogger("gateway")
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logger.removeHandler(handler)
    logger.setLevel(before)


def over_websocket(client: TestClient) -> str:
    with client.websocket_connect("/v1/converse", headers=HEADERS) as call:
        assert dict(call.extra_headers or ())[b"x-request-id"] == REQUEST.encode()
        call.send_text('{"type": "start"}')
        identifier: str = call.receive_json()["conversation_id"]
        for _ in range(FRAMES - 1):
            call.send_bytes(bytes(3840))
        call.send_text('{"type": "end"}')
        while call.receive().get("type") != "websocket.close":
            pass
    return identifier


def over_rest(client: TestClient) -> str:
    question = wav(np.zeros(1920, np.float32), 24_000)
    form = {"max_steps": str(FRAMES), "keep": "true"}
    response = client.post("/v1/respond", files={"audio": ("q.wav", question)}, data=form, headers=HEADERS)
    assert response.status_code == 200
    assert response.headers["x-request-id"] == REQUEST
    identifier = response.headers["x-personaplex-conversation"]
    assert client.delete(f"/v1/conversations/{identifier}", headers=HEADERS).status_code == 204
    return identifier


def over_grpc(client: TestClient) -> str:
    app: Any = client.app

    def messages() -> Iterator[pb.ConverseRequest]:
        yield pb.ConverseRequest(start=pb.Start())
        for _ in range(FRAMES - 1):
            yield pb.ConverseRequest(audio=bytes(3840))
        yield pb.ConverseRequest(end=pb.End())

    with grpc.insecure_channel(f"127.0.0.1:{app.state.grpc.port}") as channel:
        call = PersonaPlexStub(channel).Converse(messages(), metadata=tuple(HEADERS.items()), timeout=30)
        assert dict(call.initial_metadata())["x-request-id"] == REQUEST
        identifier: str = next(call).ready.conversation_id
        for _ in call:
            pass
        assert dict(call.trailing_metadata())["x-request-id"] == REQUEST
    return identifier


@pytest.mark.parametrize(("api", "talk"), [("converse", over_websocket), ("rest", over_rest), ("grpc", over_grpc)])
def test_log_trace_and_metrics_have_the_id(
    api: str,
    talk: Callable[[TestClient], str],
    client: TestClient,
    spans: InMemorySpanExporter,
    log: Callable[[], list[dict[str, Any]]],
):
    identifier = talk(client)

    lines = [line for line in log() if line.get("id") == identifier]
    started, ended = lines
    known = {"key": "key1", "api": api, "voice": "NATF0", "request_id": REQUEST, "trace_id": TRACE}
    assert known.items() <= started.items()
    assert started["message"] == "conversation started"
    assert known.items() <= ended.items()
    assert (ended["message"], ended["reason"], ended["frames"]) == ("conversation ended", "completed", FRAMES)
    assert ended["dropped"] == 0
    assert ended["seconds"] >= ended["first_audio_seconds"] >= ended["setup_seconds"]

    whole, parts, frames = tree(spans)
    assert whole.attributes is not None
    assert whole.attributes["conversation.id"] == identifier
    assert whole.attributes["conversation.reason"] == "completed"
    assert f"{whole.context.trace_id:032x}" == TRACE
    assert whole.parent is not None
    assert f"{whole.parent.span_id:016x}" == PARENT
    assert [part.name for part in parts] == ["setup", "prefill", "first audio"]
    for before, after in pairwise(parts):
        assert whole.start_time <= before.start_time <= before.end_time <= after.start_time <= whole.end_time
    # One live frame in two; a recording has none.
    assert [frame["frame.index"] for frame in frames] == ([] if api == "rest" else [2])
    for frame in frames:
        assert frame["frame.temporal"] > 0
        assert frame["frame.waited"] >= 0

    page = client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"}).text
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    linked = {each.name for each in samples if each.exemplar and each.exemplar.labels["conversation_id"] == identifier}
    assert {"personaplex_setup_seconds_bucket", "personaplex_ended_total", "personaplex_rtf_bucket"} <= linked
    assert all(each.exemplar.labels["trace_id"] == TRACE for each in samples if each.exemplar)
    late = [each.value for each in samples if each.name == "personaplex_late_frames_total"]
    assert ended["late"] == len([event for event in whole.events if event.name == "late frame"]) == sum(late)
    used = {each.name: each.value for each in samples if each.labels == {"key": "key1"}}
    assert used["personaplex_key_conversations_total"] == 1
    assert used["personaplex_key_audio_seconds_total"] == pytest.approx(FRAMES * 0.08)


def tree(spans: InMemorySpanExporter) -> tuple[ReadableSpan, list[ReadableSpan], list[Mapping[str, Any]]]:
    """The span of the conversation, those of its stages in order, and the attributes of those of frames."""
    finished = spans.get_finished_spans()
    (whole,) = [span for span in finished if span.name == "conversation"]
    parts = [span for span in finished if span.parent is not None and span.parent.span_id == whole.context.span_id]
    assert len(parts) + 1 == len(finished)
    parts.sort(key=lambda span: span.start_time or 0)
    frames = [span.attributes or {} for span in parts if span.name == "frame"]
    return whole, [span for span in parts if span.name != "frame"], frames


def test_a_failure_is_an_error_in_the_trace_and_ends_every_span(
    client: TestClient, spans: InMemorySpanExporter, engine: FakeBackend
):
    engine.down = True
    question = wav(np.zeros(1920, np.float32), 24_000)
    response = client.post("/v1/respond", files={"audio": ("q.wav", question)}, headers=HEADERS)
    assert response.status_code == 503
    whole, parts, _ = tree(spans)
    assert whole.status.status_code.name == "ERROR"
    assert whole.attributes is not None
    assert whole.attributes["conversation.reason"] == "engine"
    assert [part.name for part in parts] == ["setup", "prefill"]


def test_a_refusal_states_the_id_of_the_request(client: TestClient):
    response = client.get("/v1/voices", headers={"x-request-id": "mine"})
    assert response.headers["x-request-id"] == "mine"
    response = client.post("/v1/respond", headers={"x-request-id": "mine"})
    assert (response.status_code, response.headers["x-request-id"]) == (401, "mine")
