"""Personas that are prefilled before the first session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from gateway.app import create_app
from gateway.engine.fake import FakeBackend
from gateway.engine.sampling import SamplingParams
from gateway.errors import GatewayError, UnknownSystemPrompt, UnknownVoice
from gateway.manifest import Manifest
from gateway.session import warmup as warm
from gateway.session.caller import Caller
from gateway.session.persona import SYSTEM_PROMPTS, prefix_of_preset
from gateway.session.runtime import Runtime
from gateway.session.tokenizer import Tokenizer
from gateway.session.warmup import prefix_of
from gateway.settings import Settings
from gateway.telemetry.metrics import Api
from gateway.voices.registry import VoiceRegistry

SAMPLING = SamplingParams(1, audio_temperature=0.8, audio_top_k=250, text_temperature=0.7, text_top_k=25)


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "POLL_SECONDS", 0.005)


@asynccontextmanager
async def running(manifest: Manifest, engine: FakeBackend, *params: str) -> AsyncIterator[Runtime]:
    app = create_app(Settings(warm=list(params), grpc_port=-1), engine, manifest)
    async with app.router.lifespan_context(app):
        yield app.state.runtime


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 (there is no event to wait for)
            await asyncio.sleep(0.002)


@pytest.mark.parametrize(
    ("warm_persona", "text"),
    [
        ("NATM1", SYSTEM_PROMPTS["assistant"]),
        ("NATM1:teacher", SYSTEM_PROMPTS["teacher"]),
        ("NATM1:You are Ana: a baker.", "You are Ana: a baker."),
        ("NATM1:", ""),
    ],
)
def test_a_persona_is_a_voice_and_a_prompt_by_name_or_text(
    manifest: Manifest, tokenizer: Tokenizer, warm_persona: str, text: str
):
    prefix = prefix_of(warm_persona, manifest, VoiceRegistry(manifest), tokenizer)
    expected = prefix_of_preset(
        VoiceRegistry(manifest).require("NATM1").preset, tokenizer.encode_prompt(text), manifest
    )
    assert np.array_equal(prefix.steps, expected.steps)
    assert np.array_equal(prefix.embeddings, expected.embeddings)


@pytest.mark.parametrize(
    ("warm_persona", "error"), [("NATX:teacher", UnknownVoice), ("NATF0:teachr", UnknownSystemPrompt)]
)
def test_unknown_voices_and_prompts_are_rejected(
    manifest: Manifest, engine: FakeBackend, warm_persona: str, error: type
):
    with pytest.raises(error, match="there are: "):
        create_app(Settings(warm=[warm_persona]), engine, manifest)


def test_a_prompt_that_is_too_long_is_rejected(manifest: Manifest, engine: FakeBackend):
    with pytest.raises(GatewayError, match="more than the model's context"):
        create_app(Settings(warm=["NATF0:" + "far too long " * 200]), engine, manifest)


async def test_it_is_ready_once_every_persona_was_prefilled(manifest: Manifest, engine: FakeBackend):
    engine.delay = 0.02
    async with running(manifest, engine, "NATF0", "NATM1:teacher") as runtime:
        await until(lambda: len(engine.prefills) == 1)
        assert not await runtime.warmup.ready()
        await until(lambda: runtime.warmup._warm)
        assert await runtime.warmup.ready()
        # The first one twice, to check that the cache holds both.
        assert (len(engine.prefills), engine.opened, engine.closed) == (3, 3, 3)
        assert runtime.admission.taken == 0


async def test_a_conversation_with_a_warm_persona_finds_its_prefix(manifest: Manifest, engine: FakeBackend):
    async with running(manifest, engine, "NATF0:teacher") as runtime:
        await until(lambda: runtime.warmup._warm)
        prefix = prefix_of("NATF0:teacher", manifest, runtime.voices, runtime.tokenizer)
        _, prefilled = await runtime.scheduler.start(runtime.scheduler.open(), prefix, SAMPLING)
        assert prefilled.cached == prefix.length - 1


@pytest.mark.parametrize(("remembers", "logged"), [(2, False), (1, True), (0, True)])
async def test_personas_beyond_the_prefix_cache_are_logged(
    manifest: Manifest, engine: FakeBackend, caplog: pytest.LogCaptureFixture, remembers: int, logged: bool
):
    engine.remembers = remembers
    async with running(manifest, engine, "NATF0", "NATM1:teacher") as runtime:
        await until(lambda: runtime.warmup._warm)
        assert ("the prefix cache does not hold all 2 personas" in caplog.text) is logged


async def test_a_removed_first_persona_does_not_affect_the_others(
    manifest: Manifest, engine: FakeBackend, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    known = warm.prefix_of

    def removed(warm_persona: str, *given: Any):
        if warm_persona == "NATF0":
            raise UnknownVoice(warm_persona, [])
        return known(warm_persona, *given)

    engine.down = True
    async with running(manifest, engine, "NATF0", "NATM1:teacher") as runtime:
        monkeypatch.setattr(warm, "prefix_of", removed)
        engine.down = False
        await until(lambda: runtime.warmup._warm)
        assert len(engine.prefills) == 1
        assert "cannot warm up NATF0" in caplog.text
        assert "do not remember" not in caplog.text


async def test_it_is_done_again_when_the_engine_was_away(manifest: Manifest, engine: FakeBackend):
    async with running(manifest, engine, "NATF0") as runtime:
        await until(lambda: runtime.warmup._warm)
        engine.down = True
        await until(lambda: not runtime.warmup._warm)
        engine.down = False
        assert not await runtime.warmup.ready()
        await until(lambda: runtime.warmup._warm)
        assert len(engine.prefills) == 4


async def test_a_full_server_stays_ready_after_an_outage_that_its_conversations_survived(
    manifest: Manifest, engine: FakeBackend
):
    async with running(manifest, engine, "NATF0") as runtime:
        runtime.readiness.period = 0
        await until(lambda: runtime.warmup._warm)
        slots = [runtime.admission.acquire(Caller(Api.REST)) for _ in range(manifest.slots)]
        engine.down = True
        await until(lambda: not runtime.warmup._warm)
        assert not await runtime.warmup.ready()
        engine.down = False
        assert await runtime.warmup.ready()
        slots[0].release()
        assert not await runtime.warmup.ready()
        await until(lambda: runtime.warmup._warm)


async def test_it_waits_for_a_slot(manifest: Manifest, engine: FakeBackend):
    engine.down = True
    async with running(manifest, engine, "NATF0") as runtime:
        slots = [runtime.admission.acquire(Caller(Api.REST)) for _ in range(manifest.slots)]
        engine.down = False
        await asyncio.sleep(0.05)
        assert engine.opened == 0
        slots[0].release()
        await until(lambda: runtime.warmup._warm)
        assert engine.closed == 2


async def test_with_nothing_to_prefill_ready_is_what_the_engine_says(manifest: Manifest, engine: FakeBackend):
    async with running(manifest, engine) as runtime:
        runtime.readiness.period = 0
        assert await runtime.warmup.ready()
        engine.down = True
        assert not await runtime.warmup.ready()
        engine.down = False
        assert await runtime.warmup.ready()
        assert engine.opened == 0
