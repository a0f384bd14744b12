"""One run: start Locust as a process, sample CPU use meanwhile, and combine the results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from loadtest.plan import Plan
from loadtest.record import Api, Record
from loadtest.server import NoServer, Server
from loadtest.stats import LoadStats
from loadtest.usage import LOCUST, USERS, Sampler, Usage, server_processes

MODELS = ("mimi_encoder", "temporal", "depformer", "mimi_decoder")
_LOCUSTFILE = Path(__file__).with_name("locustfile.py")


@dataclass(frozen=True)
class Result:
    """Result of a run. stats: by API. batch: mean temporal batch. usage: None for a server started elsewhere."""

    plan: Plan
    api: str
    stats: dict[Api, LoadStats]
    usage: Usage | None
    batch: float | None
    page: Path

    @property
    def frames(self) -> int:
        """Agent frames received by all users."""
        return sum(stats.received for stats in self.stats.values())

    @property
    def slow_client(self) -> bool:
        return any(stats.slow_client for stats in self.stats.values())

    def faults(self) -> list[str]:
        """Why the run did not pass; empty if it passed."""
        return [f"{api.value}: {fault}" for api, stats in self.stats.items() for fault in stats.faults()]

    def to_json(self) -> dict[str, Any]:
        """JSON content, without the API key."""
        plan = json.loads(replace(self.plan, api_key="").to_json())
        return {
            "plan": plan | {"api": self.api},
            "passed": not self.faults(),
            "faults": self.faults(),
            "slow_client": self.slow_client,
            "stats": {api.value: stats.to_json() for api, stats in self.stats.items()},
            "mean_temporal_batch": self.batch,
            "cpu_seconds": dict(self.usage.cpu) if self.usage else None,
            "cpu_ms_per_frame": self.cpu_per_frame(),
            "other_cpu_seconds": self.usage.others if self.usage else None,
            "cores": os.cpu_count(),
        }

    def cpu_per_frame(self) -> dict[str, float] | None:
        """Milliseconds of one core per agent frame."""
        if self.usage is None or not self.frames:
            return None
        used = {"gateway": self.usage.gateway, "triton": self.usage.triton, "client": self.usage.client}
        return {name: seconds * 1000 / self.frames for name, seconds in used.items()}


def run(server: Server, plan: Plan, api: str, spawn_rate: float, folder: Path) -> Result:
    """Run `plan` against `server`; write everything to `folder`. Raises NoServer."""
    page = folder / "report.html"
    before = server.shared_frames()
    with ExitStack() as held:
        log = held.enter_context((folder / "locust.log").open("w"))
        locust = held.enter_context(
            subprocess.Popen(_command(server, plan, api, spawn_rate, page), stdout=log, stderr=log, env=_env(plan))
        )
        processes = {LOCUST: psutil.Process(locust.pid)}
        if server.pid is not None:
            processes |= server_processes(server.pid, MODELS)
        sampler = held.enter_context(Sampler(processes))
        locust.wait()
    if not plan.out_path.exists():
        raise NoServer(f"Locust did not finish; see {folder / 'locust.log'}")
    results = json.loads(plan.out_path.read_text())
    records = [Record.from_json(record) for record in results["records"]]
    after = server.shared_frames()
    shared = after[1] - before[1]
    usage = None
    if server.pid is not None and results["began"] is not None:
        usage = sampler.between(results["began"], min(results["began"] + plan.seconds, time.monotonic()))
        usage = replace(usage, cpu={**usage.cpu, USERS: results["client_cpu_seconds"]})
    apis = sorted({record.api for record in records})
    return Result(
        plan=plan,
        api=api,
        stats={each: LoadStats.of([record for record in records if record.api is each]) for each in apis},
        usage=usage,
        batch=(after[0] - before[0]) / shared if shared else None,
        page=page,
    )


def _command(server: Server, plan: Plan, api: str, spawn_rate: float, page: Path) -> list[str]:
    options = {
        "-f": _LOCUSTFILE,
        "--host": server.url,
        "--grpc": server.grpc,
        "--api": api,
        "--users": plan.users,
        "--spawn-rate": spawn_rate,
        "--seconds": plan.seconds,
        "--phases": plan.phases,
        "--drain": plan.drain,
        "--recording": plan.recording,
        "--records": plan.out,
        "--html": page,
    }
    flags = ["--headless", "--only-summary", "--exit-code-on-error", "0"]
    return [sys.executable, "-m", "locust", *flags, *(str(word) for option in options.items() for word in option)]


def _env(plan: Plan) -> dict[str, str]:
    # Other users of the machine can read a command line.
    return {**os.environ, "PERSONAPLEX_API_KEY": plan.api_key}
