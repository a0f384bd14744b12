"""Locust as Locust: a master with two workers, stages, arrivals at random times, TLS, and the web UI."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from loadtest.paths import ROOT
from tests.gateway.websocket.conftest import serve

__all__ = ["serve"]

CERTIFICATE, KEY = (ROOT / "tests" / "data" / name for name in ("localhost.pem", "localhost-key.pem"))
FILES = ",".join(str(ROOT / "loadtest" / name) for name in ("locustfile.py", "stages.py"))
SLOTS = 4


def free_port() -> int:
    """A port outside the range of outgoing connections: Locust takes seconds until it listens."""
    while True:
        port = random.randrange(20_000, 30_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@asynccontextmanager
async def locust(folder: Path, *arguments: object) -> AsyncIterator[asyncio.subprocess.Process]:
    """Locust as a process, which adds to the log in `folder`; ended on exit."""
    with (folder / "locust.log").open("a") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "locust", *map(str, arguments)),
            cwd=folder,
            stdout=output,
            stderr=output,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "SSL_CERT_FILE": str(CERTIFICATE),
                "PERSONAPLEX_API_KEY": "a-secret",
            },
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


def read(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Statistics by API, and the records."""
    stats = json.loads((folder / "result.json").read_text())["stats"]
    return stats, json.loads((folder / "run.json").read_text())["records"]


@pytest.mark.long
@pytest.mark.parametrize("calls_per_minute", [0, 60])
async def test_a_master_and_two_workers_load_a_server_with_tls(serve: Any, tmp_path: Path, calls_per_minute: int):
    async with AsyncExitStack() as held:
        server = await held.enter_async_context(
            serve(SLOTS, live_speed=1, tls_certificate=CERTIFICATE, tls_key=KEY, accept_when_full=False)
        )
        port = free_port()
        users = ("-f", FILES, "WebSocketUser", "LiveApiUser")
        for _ in range(2):
            await held.enter_async_context(locust(tmp_path, *users, "--worker", "--master-port", port))
        url = f"https://localhost:{server.url.rpartition(':')[2]}"
        options = ("--host", url, "--length", "1-3", "--calls-per-minute", calls_per_minute, "--out", tmp_path / "run")
        stages = ("--headless", "--expect-workers", 2, "--stages", "2:12,2-6:8,2:4")
        master = await held.enter_async_context(
            locust(tmp_path, *users, "--master", "--master-bind-port", port, *stages, *options)
        )
        async with asyncio.timeout(120):
            await master.wait()
    stats, records = read(tmp_path / "run")
    assert set(stats) == {"websocket", "live"}
    for each in stats.values():
        assert each["completed"] >= 2
        assert each["failed"] == 0
        assert each["expected"] - each["missing"] == each["received"] > 0
    assert len({record["user"] // 1_000_000 for record in records}) == 2, "both workers made calls"
    # Six users, or calls at random times, and fewer slots: refused calls stay in the denominator.
    for record in records:
        if record["outcome"] == "refused":
            assert record["frames"] == 0 < record["expected"]
        elif record["outcome"] == "completed":
            # A busy machine delays users, who then send fewer frames.
            assert record["frames"] == len(record["sent"]) <= record["expected"] <= 38
    assert (tmp_path / "run" / "report.html").read_text().count("<svg") == 5


@pytest.mark.long
async def test_the_web_ui_starts_and_stops_runs_and_has_their_report(serve: Any, tmp_path: Path):
    async with AsyncExitStack() as held:
        server = await held.enter_async_context(serve(SLOTS, live_speed=1))
        port = free_port()
        listen = ("--web-host", "127.0.0.1", "--web-port", port, "--out", tmp_path / "run")
        process = await held.enter_async_context(
            locust(tmp_path, "-f", ROOT / "loadtest" / "locustfile.py", "WebSocketUser", *listen)
        )
        ui = await held.enter_async_context(
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60)
        )
        async with asyncio.timeout(60):
            while True:
                try:
                    assert (await ui.get("/report")).status_code == 404
                    break
                except httpx.ConnectError:
                    await asyncio.sleep(0.2)

        async def frames() -> int:
            rows = (await ui.get("/stats/requests")).json()["stats"]
            return sum(row["num_requests"] for row in rows if row["name"] == "frame")

        for number, users in enumerate((2, 3)):
            before = await frames()
            form = {"user_count": users, "spawn_rate": 10, "host": server.url.replace("ws", "http", 1), "length": "60"}
            assert (await ui.post("/swarm", data=form)).json()["success"]
            async with asyncio.timeout(60):
                # The first run's frames are there until the second one's are counted.
                while (now := await frames()) <= before + users:
                    before = min(before, now)
                    await asyncio.sleep(0.2)
            command_lines = [
                " ".join(child.cmdline()) for child in psutil.Process(process.pid).children(recursive=True)
            ]
            assert any("loadtest.users" in line for line in command_lines)
            assert not any("a-secret" in line for line in command_lines)
            assert (await ui.post("/stop")).json()["success"]
            report = await ui.get("/report")
            assert report.status_code == 200
            assert "<svg" in report.text
            stats, records = read(tmp_path / ("run" if not number else f"run-{number + 1}"))
            assert len(records) == stats["websocket"]["completed"] == users
            assert stats["websocket"]["missing"] == 0
            await server.until_free()


async def test_an_impossible_option_is_an_error(tmp_path: Path):
    arguments = ("-f", ROOT / "loadtest" / "locustfile.py", "--headless", "--host", "http://h:1", "--length", "long")
    async with locust(tmp_path, *arguments, "--out", tmp_path / "run") as process, asyncio.timeout(60):
        assert await process.wait() == 2
    assert "--length: expected" in (tmp_path / "locust.log").read_text()
    assert not (tmp_path / "run").exists()
