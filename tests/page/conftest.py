"""A gateway on a TCP port with a fake backend, and a browser that opens its page."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from playwright.sync_api import Browser

from gateway.app import create_app
from gateway.engine.backend import Floats, Tokens
from gateway.engine.fake import FakeBackend
from gateway.manifest import Manifest
from gateway.server import GatewayServer
from gateway.settings import Settings
from tests.page.browser import ALLOWED, FAKE_MICROPHONE, Visit, chromium, visiting


class EchoBackend(FakeBackend):
    """The agent's audio is the user's last frame. `user_frames`: all of them, in order."""

    def __init__(self, manifest: Manifest) -> None:
        super().__init__(manifest)
        self.user_frames: list[Floats] = []
        self._last: dict[int, Floats] = {}

    async def encode(self, slots: Tokens, pcm: Floats) -> Tokens:
        for slot, frame in zip(slots.tolist(), pcm, strict=True):
            self._last[slot] = frame
            self.user_frames.append(frame)
        return await super().encode(slots, pcm)

    async def decode(self, slots: Tokens, codes: Tokens) -> Floats:
        pcm = await super().decode(slots, codes)
        return np.stack([self._last.get(slot, pcm[0] * 0) for slot in slots.tolist()])


@dataclass(frozen=True)
class Gateway:
    """A running gateway, and faults to inject."""

    url: str
    engine: EchoBackend
    app: FastAPI
    server: GatewayServer
    loop: Any

    def cut_connections(self) -> None:
        """Abort all TCP connections."""
        connections = list(self.server.server_state.connections)
        self.loop.call_soon_threadsafe(lambda: [one.transport.abort() for one in connections])

    def drain(self) -> None:
        self.loop.call_soon_threadsafe(self.app.state.runtime.sessions.begin_drain)


@contextmanager
def running(models: Path, slots: int = 8, **settings: Any) -> Iterator[Gateway]:
    manifest = Manifest.load(models).model_copy(update={"slots": slots})
    # Large, so that a stall of the machine drops no frames.
    configured = Settings(models=models, **{"input_frames": 500, "grpc_port": -1, **settings})
    engine = EchoBackend(manifest)
    app = create_app(configured, engine, manifest)
    server = GatewayServer(app, configured, log_level="warning")
    loops: list[Any] = []

    async def serve(listener: socket.socket) -> None:
        loops.append(asyncio.get_running_loop())
        await server.serve([listener])

    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))

        thread = threading.Thread(target=lambda: asyncio.run(serve(listener)))
        thread.start()
        try:
            deadline = time.monotonic() + 30
            while not server.started:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield Gateway(f"http://localhost:{listener.getsockname()[1]}", engine, app, server, loops[0])
        finally:
            server.hurry()
            server.should_exit = True
            thread.join(timeout=20)
            assert not thread.is_alive()


@pytest.fixture
def gateway_with(tiny_models: Path) -> Iterator[Callable[..., Gateway]]:
    """Return a function that starts a gateway with `slots` and settings."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(running(tiny_models, **options))


@pytest.fixture
def gateway(gateway_with: Callable[..., Gateway]) -> Gateway:
    return gateway_with()


# Module scope: Playwright's event loop would interfere with tests of other packages.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser whose microphone repeats a recording, with permission to use it."""
    with chromium(*ALLOWED, *FAKE_MICROPHONE) as browser:
        yield browser


@pytest.fixture
def visit(browser: Browser, gateway: Gateway) -> Iterator[Visit]:
    with visiting(browser, gateway.url) as visit:
        yield visit


@pytest.fixture
def visit_to(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Return a function that opens another window at a URL."""
    with ExitStack() as stack:

        def enter(url: str, **options: Any) -> Visit:
            opened: AbstractContextManager[Visit] = visiting(browser, url, **options)
            return stack.enter_context(opened)

        yield enter
