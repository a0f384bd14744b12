"""Gateways with the fake engine, each a process. They print their number of taken slots at each change.

`python pods.py MODELS DELAY SETTINGS`. An address on a line of the input starts a gateway there. It is a fork, so that
modules are imported once. SIGUSR1 begins its drain. At the end of the input, or if a gateway fails, all end.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from time import monotonic
from typing import Any

import uvloop

from gateway.app import create_app
from gateway.engine.fake import FakeBackend
from gateway.manifest import Manifest
from gateway.server import GatewayServer
from gateway.settings import Settings


class PrintedGauge:
    """Takes the place of the metric of taken slots."""

    def __init__(self, address: str) -> None:
        self._address = address

    def set(self, taken: int) -> None:
        line = json.dumps({"address": self._address, "pid": os.getpid(), "at": monotonic(), "taken": taken})
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


async def _serve(models: str, delay: str, settings: str, address: str) -> None:
    manifest = Manifest.load(Path(models))
    fixed: dict[str, Any] = {"host": address, "port": 8998, "grpc_port": 8999, "admin_listen": "none", "live_speed": 0}
    configured = Settings(models=Path(models), accept_when_full=False, **fixed, **json.loads(settings))
    app = create_app(configured, FakeBackend(manifest, delay=float(delay)), manifest)
    app.state.runtime.metrics.active = gauge = PrintedGauge(address)
    server = GatewayServer(app, configured)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, app.state.runtime.sessions.begin_drain)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    gauge.set(0)
    await serving


def main(models: str, delay: str, settings: str) -> None:
    """Start gateways. The process must be the first of its group."""
    # The kernel removes ended children.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while line := sys.stdin.readline():
        if os.fork() == 0:
            try:
                uvloop.run(_serve(models, delay, settings, line.strip()))
            except BaseException:
                traceback.print_exc()
                break
            os._exit(0)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
