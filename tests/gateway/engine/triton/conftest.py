"""The Triton backend, beside a stand-in for Triton."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from gateway.engine.triton.backend import TritonBackend
from gateway.manifest import Manifest
from tests.gateway.engine.triton.stand_in import Server


@pytest.fixture
def manifest(manifest: Manifest) -> Manifest:
    return manifest.model_copy(update={"slots": 8})


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
async def backend(server: Server, manifest: Manifest) -> AsyncIterator[TritonBackend]:
    listening, port = await server.listen()
    backend = TritonBackend(f"127.0.0.1:{port}", manifest, step_deadline=1, prefill_deadline=1, release_deadline=1)
    yield backend
    await backend.close()
    await server.stop(listening)
