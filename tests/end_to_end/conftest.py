"""The whole service on real parts: embedded Triton, the gateway over HTTP on a free port, real clients."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc

from gateway.app import create_app
from gateway.manifest import Manifest
from gateway.server import GatewayServer
from gateway.settings import Settings
from gateway.triton_server.server import TritonServer


@dataclass(frozen=True)
class Counts:
    """Triton's own statistics of one model: inferences asked for, and executions it took."""

    inferences: int
    executions: int

    def __sub__(self, earlier: Counts) -> Counts:
        return Counts(self.inferences - earlier.inferences, self.executions - earlier.executions)


@dataclass(frozen=True)
class Service:
    """A running service, and how to look into it."""

    url: str
    triton: TritonServer
    app: Any
    server: GatewayServer

    @property
    def grpc_target(self) -> str:
        """HOST:PORT of the gRPC API."""
        return f"127.0.0.1:{self.app.state.grpc.port}"

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120, **options)

    def counts(self, model: str) -> Counts:
        with grpc.insecure_channel(self.triton.grpc_url) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            statistics = stub.ModelStatistics(service_pb2.ModelStatisticsRequest(name=model)).model_stats[0]
        return Counts(statistics.inference_count, statistics.execution_count)

    def active_conversations(self) -> float:
        with self.client() as client:
            page = client.get("/metrics").text
        (line,) = [line for line in page.splitlines() if line.startswith("personaplex_conversations_active ")]
        return float(line.split()[1])

    def tasks(self) -> list[str]:
        """What runs in the gateway's event loop, the question itself left out."""

        async def others() -> list[str]:
            return [repr(task) for task in asyncio.all_tasks() - {asyncio.current_task()}]

        loop = self.server._loop
        assert loop is not None
        return asyncio.run_coroutine_threadsafe(others(), loop).result(10)

    def wait_until_free(self, timeout: float = 10.0, but: int = 0) -> None:
        """Until no more than `but` slots are taken."""
        deadline = time.monotonic() + timeout
        while self.active_conversations() > but:
            assert time.monotonic() < deadline, "a slot was not given back"
            time.sleep(0.02)


@contextmanager
def serve(models: Path, **settings: Any) -> Iterator[Service]:
    """Serve a built repository until the context ends."""
    with TritonServer(models / "triton") as triton, closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        # A machine that stalls for a moment must not lose frames of these calls.
        options = {"input_frames": 500, "grpc_port": 0, **settings}
        configured = Settings(models=models, triton_url=triton.http_url, **options)
        app = create_app(configured, manifest=Manifest.load(models))
        server = GatewayServer(app, configured, log_level="warning")
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            with httpx.Client(base_url=url) as client:
                for _ in range(500):
                    try:
                        if client.get("/readyz").status_code == 200:
                            break
                    except httpx.TransportError:
                        pass
                    time.sleep(0.02)
            yield Service(url, triton, app, server)
        finally:
            server.hurry()
            server.should_exit = True
            thread.join(timeout=20)
            assert not thread.is_alive()


@pytest.fixture(scope="session")
def golden_service(golden_models: Path) -> Iterator[Service]:
    with serve(golden_models, allow_voice_audio=True, forced_speech=True) as service:
        yield service


@pytest.fixture(scope="session")
def tiny_service(tiny_models: Path) -> Iterator[Service]:
    with serve(tiny_models) as service:
        yield service


@pytest.fixture(scope="session")
def speaking_service(speaking_models: Path) -> Iterator[Service]:
    """With the most likely tokens: `POST /v1/respond` can ask for them, and other APIs cannot."""
    with serve(speaking_models) as service:
        sampling = service.app.state.runtime.manifest.sampling
        sampling.text_temperature = sampling.audio_temperature = 0.0
        yield service


@dataclass(frozen=True)
class Answer:
    """A JSON answer as arrays."""

    text_tokens: NDArray[np.int64]
    agent_codes: NDArray[np.int64]
    user_codes: NDArray[np.int64]
    pcm: NDArray[np.float32]
    body: dict[str, Any]

    @classmethod
    def of(cls, response: httpx.Response) -> Answer:
        assert response.status_code == 200, response.text
        body = response.json()
        pcm, rate = soundfile.read(io.BytesIO(base64.b64decode(body.pop("audio"))), dtype="float32")
        assert rate == body["sample_rate"] == 24000
        tokens = (np.array(body.pop(name)) for name in ("text_tokens", "agent_codes", "user_codes"))
        return cls(*tokens, pcm, body)

    def same_as(self, other: Answer) -> bool:
        return all(
            np.array_equal(getattr(self, name), getattr(other, name))
            for name in ("text_tokens", "agent_codes", "user_codes", "pcm")
        )


def wav(pcm: NDArray[Any], rate: int = 24000, subtype: str = "FLOAT") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm, rate, format="WAV", subtype=subtype)
    return buffer.getvalue()


def respond(client: httpx.Client, audio: bytes, **fields: Any) -> Answer:
    """POST /v1/respond as JSON, asking for everything."""
    body = {"audio": base64.b64encode(audio).decode(), "include": ["tokens"], **fields}
    headers = {"accept": "application/json", "content-type": "application/json"}
    return Answer.of(client.post("/v1/respond", content=json.dumps(body), headers=headers))
