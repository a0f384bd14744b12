"""The whole application on the fake engine, called in process."""

from __future__ import annotations

import base64
import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from fastapi import FastAPI

from gateway.app import create_app
from gateway.engine.fake import FakeBackend
from gateway.manifest import Manifest
from gateway.settings import Settings

Make = Callable[..., bytes]


@pytest.fixture
def settings(models: Path) -> Settings:
    return Settings(models=models, max_audio_seconds=10, max_voice_seconds=5, max_steps=400, retry_after=7)


@pytest.fixture
def app(settings: Settings, manifest: Manifest, engine: FakeBackend) -> FastAPI:
    return create_app(settings, engine, manifest)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


@pytest.fixture
def recording() -> Make:
    """Makes an audio file: noise of `frames` frames of 80 ms."""

    def make(frames: float = 5, rate: int = 24_000, channels: int = 1, kind: str = "WAV") -> bytes:
        noise = np.random.default_rng(2).uniform(-0.3, 0.3, (round(frames * 0.08 * rate), channels))
        buffer = io.BytesIO()
        soundfile.write(buffer, noise, rate, format=kind)
        return buffer.getvalue()

    return make


@pytest.fixture
def ask(client: httpx.AsyncClient, recording: Make) -> Callable[..., Any]:
    """Return a function that posts a recording as JSON and accepts JSON; `max_steps` defaults to 4."""

    async def post(accept: str = "application/json", audio: bytes | None = None, **fields: Any) -> httpx.Response:
        body = {"audio": base64.b64encode(recording() if audio is None else audio).decode(), "max_steps": 4, **fields}
        return await client.post("/v1/respond", json=body, headers={"Accept": accept})

    return post


@pytest.fixture
async def no_slot_is_lost(app: FastAPI, engine: FakeBackend) -> AsyncIterator[None]:
    yield
    assert app.state.runtime.admission.taken == 0
    assert engine.opened == engine.closed
