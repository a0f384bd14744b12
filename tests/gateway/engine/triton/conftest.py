"""The Triton engine, beside a stand-in for Triton."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gateway.engine.triton.backend import TritonEngine, TritonSession
from gateway.manifest import Manifest
from tests.gateway.engine.triton.stand_in import Server


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
async def engine(server: Server, manifest: Manifest) -> AsyncIterator[TritonEngine]:
    listening, port = await server.listen()
    engine = TritonEngine(f"127.0.0.1:{port}", manifest, step_deadline=1, prefill_deadline=1, release_deadline=1)
    yield engine
    await engine.close()
    await server.stop(listening)


@pytest.fixture
def session(engine: TritonEngine) -> TritonSession:
    return engine.open()
