"""One run: start Locust as a process, sample CPU use meanwhile, and combine the results."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from loadtest.plan import Starts
from loadtest.record import Api
from loadtest.result import RUN_FILE, Result
from loadtest.server import NoServer, Server
from loadtest.usage import LOCUST, USERS, Sampler, server_processes

MODELS = ("mimi_encoder", "temporal", "depformer", "mimi_decoder")
_LOCUSTFILE = Path(__file__).with_name("locustfile.py")
USERS_OF_API = {
    Api.GRPC: "GrpcUser",
    Api.WEBSOCKET: "WebSocketUser",
    Api.LIVE: "LiveApiUser",
    Api.REALTIME: "RealtimeUser",
    Api.TWILIO: "TwilioUser",
    Api.REST: "RestUser",
}
"""Locust's user class of each API."""


@dataclass(frozen=True)
class Load:
    """`users` make one call of `seconds` each; all are admitted before the first one sends.

    apis: of the users, the same number of each. spawn_rate: users per second.
    """

    users: int
    seconds: float
    apis: tuple[Api, ...] = (Api.GRPC,)
    starts: Starts = "spread"
    recording: Path | None = None
    drain: float = 2.0
    api_key: str = ""
    spawn_rate: float = 50.0


def run(server: Server, load: Load, folder: Path) -> Result:
    """Load `server`; write Locust's log and the records to `folder`. Raises NoServer."""
    before = server.shared_frames()
    with ExitStack() as held:
        log = held.enter_context((folder / "locust.log").open("w"))
        locust = held.enter_context(
            subprocess.Popen(_command(server, load, folder), stdout=log, stderr=log, env=_env(load))
        )
        processes = {LOCUST: psutil.Process(locust.pid)}
        if server.pid is not None:
            processes |= server_processes(server.pid, MODELS)
        sampler = held.enter_context(Sampler(processes))
        locust.wait()
    if not (folder / RUN_FILE).exists():
        raise NoServer(f"Locust did not finish; see {folder / 'locust.log'}")
    result = Result.read(folder)
    after = server.shared_frames()
    shared = after[1] - before[1]
    usage = None
    (worker,) = result.workers
    if server.pid is not None and worker["began"] is not None:
        usage = sampler.between(worker["began"], min(worker["began"] + load.seconds, time.monotonic()))
        usage = replace(usage, cpu={**usage.cpu, USERS: worker["cpu_seconds"]})
    return replace(result, usage=usage, batch=(after[0] - before[0]) / shared if shared else None)


def _command(server: Server, load: Load, folder: Path) -> list[str]:
    options = {
        "-f": _LOCUSTFILE,
        "--host": server.url,
        "--grpc": server.grpc,
        "--users": load.users,
        "--spawn-rate": load.spawn_rate,
        "--length": load.seconds,
        "--calls": 1,
        "--starts": load.starts,
        "--drain": load.drain,
        "--out": folder,
    }
    if load.recording is not None:
        options["--recording"] = load.recording.resolve()
    flags = ["--headless", "--only-summary", "--records-only", "--exit-code-on-error", "0"]
    classes = [USERS_OF_API[api] for api in load.apis]
    words = [str(word) for option in options.items() for word in option]
    return [sys.executable, "-m", "locust", *flags, *words, *classes]


def _env(load: Load) -> dict[str, str]:
    # Other users of the machine can read a command line.
    return {**os.environ, "PERSONAPLEX_API_KEY": load.api_key}
