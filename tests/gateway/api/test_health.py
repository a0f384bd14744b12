"""/healthz, /readyz and /metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from gateway.engine.fake import FakeBackend

Ask = Callable[..., Any]


async def test_healthz_does_not_depend_on_the_backend(client: httpx.AsyncClient, engine: FakeBackend):
    engine.down = True
    answer = await client.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def test_readyz_follows_the_backend(client: httpx.AsyncClient, engine: FakeBackend, app: FastAPI):
    app.state.runtime.readiness.period = 0
    answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ready"})
    engine.down = True
    answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["retry-after"] == "7"
    engine.down = False
    assert (await client.get("/readyz")).status_code == 200


async def stats(client: httpx.AsyncClient) -> dict[str, float]:
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        sample.name + "".join(sorted(f"[{value}]" for key, value in sample.labels.items() if key != "le")): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if sample.labels.get("le", "+Inf") == "+Inf"
    }


async def test_metrics_count_frames_stages_and_ends(client: httpx.AsyncClient, ask: Ask, engine: FakeBackend):
    await ask(max_steps=6)
    engine.down = True
    await ask()
    found = await stats(client)
    assert found["personaplex_frames_total"] == 6
    assert found["personaplex_frame_seconds_count"] == 5
    assert {found[f"personaplex_stage_seconds_count[{stage}]"] for stage in ("encode", "temporal", "decode")} == {5}
    assert found["personaplex_ended_total[completed][rest]"] == 1
    assert found["personaplex_ended_total[engine][rest]"] == 1
    assert found["personaplex_rtf_count"] == 1
    assert found["personaplex_setup_seconds_count"] == 1
    assert found["personaplex_time_to_first_audio_seconds_count"] == 1
    assert found["personaplex_slots"] == 2
    assert found["personaplex_conversations_active"] == 0


async def test_the_stage_buckets_lie_around_80_ms(client: httpx.AsyncClient):
    text = (await client.get("/metrics")).text
    for edge in ("0.001", "0.07", "0.08", "0.09", "0.64"):
        assert f'personaplex_stage_seconds_bucket{{le="{edge}",stage="temporal"}}' in text
