"""A gateway with the fake engine as a process of its own. It prints its number of taken slots at each change.

`python pod.py MODELS ADDRESS DELAY SETTINGS`. The line `drain` on its input begins a drain.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from time import monotonic
from typing import Any


class PrintedGauge:
    """Takes the place of the metric of taken slots."""

    def set(self, taken: int) -> None:
        _print(taken=taken)


def _print(**values: Any) -> None:
    sys.stdout.write(json.dumps({"at": monotonic(), **values}) + "\n")
    sys.stdout.flush()


async def _serve(models: str, address: str, delay: str, settings: str) -> None:
    from gateway.app import create_app
    from gateway.engine.fake import FakeBackend
    from gateway.manifest import Manifest
    from gateway.server import GatewayServer
    from gateway.settings import Settings

    manifest = Manifest.load(Path(models))
    fixed: dict[str, Any] = {"host": address, "port": 8998, "grpc_port": 8999, "admin_listen": "none", "live_speed": 0}
    configured = Settings(models=Path(models), accept_when_full=False, **fixed, **json.loads(settings))
    app = create_app(configured, FakeBackend(manifest, delay=float(delay)), manifest)
    app.state.runtime.metrics.active = PrintedGauge()
    server = GatewayServer(app, configured)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    _print(taken=0)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.readline():
        app.state.runtime.sessions.begin_drain()
    await serving


if __name__ == "__main__":
    import uvloop

    uvloop.run(_serve(*sys.argv[1:]))
