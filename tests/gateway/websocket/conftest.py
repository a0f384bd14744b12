"""The application on the fake engine behind a real uvicorn on a loopback port, and real WebSocket clients."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from fastapi import FastAPI
from numpy.typing import NDArray
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from gateway.app import create_app
from gateway.engine.fake import FakeBackend
from gateway.manifest import Manifest
from gateway.server import GatewayServer
from gateway.session.runtime import Runtime
from gateway.settings import Settings

FRAME = 1920


@dataclass
class Server:
    """A running gateway."""

    url: str
    app: FastAPI
    engine: FakeBackend

    @property
    def runtime(self) -> Runtime:
        runtime: Runtime = self.app.state.runtime
        return runtime

    def connect(self, path: str = "/v1/converse", **options: Any) -> connect:
        return connect(self.url + path, compression=None, proxy=None, **{"max_size": None, **options})

    async def offline(self, pcm: NDArray[np.float32], frames: int, **fields: Any) -> dict[str, Any]:
        """Send the same samples to `POST /v1/respond`; return the JSON response with its audio as int16 samples."""
        buffer = io.BytesIO()
        soundfile.write(buffer, pcm, 24_000, format="WAV", subtype="FLOAT")
        body = {"audio": base64.b64encode(buffer.getvalue()).decode(), "max_steps": frames, **fields}
        async with httpx.AsyncClient(base_url=self.url.replace("ws", "http", 1)) as client:
            response = await client.post("/v1/respond", json=body, headers={"Accept": "application/json"})
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        answer["audio"], _ = soundfile.read(io.BytesIO(base64.b64decode(answer["audio"])), dtype="int16")
        return answer

    async def until_free(self) -> None:
        async with asyncio.timeout(10):
            while self.runtime.admission.taken:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert self.engine.opened == self.engine.closed


@dataclass
class Received:
    """Messages received on `/v1/converse`."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    audio: list[bytes] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    code: int | None = None

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["type"] == kind]

    def one(self, kind: str) -> dict[str, Any]:
        (message,) = self.of(kind)
        return message

    @property
    def pcm(self) -> NDArray[Any]:
        form = self.one("ready")["audio"]["format"]
        return np.frombuffer(b"".join(self.audio), "<i2" if form == "pcm_s16le" else "<f4")


def start(**fields: Any) -> str:
    """The first message of `/v1/converse`."""
    return json.dumps({"type": "start", **fields})


END = json.dumps({"type": "end"})


async def receive_all(client: ClientConnection) -> Received:
    """Everything until the close."""
    received = Received()
    try:
        async with asyncio.timeout(20):
            while True:
                message = await client.recv()
                if isinstance(message, bytes):
                    received.audio.append(message)
                    received.order.append("audio")
                else:
                    received.messages.append(json.loads(message))
                    received.order.append(received.messages[-1]["type"])
    except ConnectionClosed:
        received.code = client.close_code
    return received


@pytest.fixture
def serve(write_repository: Callable[[], Any], manifest_json: dict[str, Any]) -> Callable[..., Any]:
    """Serves the fake engine; settings as keywords."""

    @asynccontextmanager
    async def run(slots: int = 2, delay: float = 0.0, **settings: Any) -> AsyncIterator[Server]:
        manifest_json["slots"] = slots
        models = write_repository()
        manifest = Manifest.load(models)
        engine = FakeBackend(manifest, delay=delay)
        configured = Settings(models=models, **{"live_speed": 0, "grpc_port": 0, **settings})
        app = create_app(configured, engine, manifest)
        listener = socket.create_server(("127.0.0.1", 0))
        server = GatewayServer(app, configured)
        running = asyncio.create_task(server._serve([listener]))
        while not server.started:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        try:
            yield Server(f"ws://127.0.0.1:{listener.getsockname()[1]}", app, engine)
        finally:
            server.hurry()
            server.should_exit = True
            await running

    return run


@pytest.fixture
async def server(serve: Callable[..., Any]) -> AsyncIterator[Server]:
    async with serve() as running:
        yield running
        await running.until_free()


@pytest.fixture
def noise() -> Callable[..., NDArray[np.float32]]:
    """Return a function that makes noise of a number of frames."""

    def make(frames: float = 5, seed: int = 2) -> NDArray[np.float32]:
        samples = np.random.default_rng(seed).uniform(-0.3, 0.3, round(frames * FRAME))
        return samples.astype(np.float32)

    return make
