"""One run: Locust as a process of its own, CPU watched meanwhile, and everything put together afterwards."""

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

from loadtest.figures import Figures
from loadtest.plan import Plan
from loadtest.record import Face, Record
from loadtest.server import NoServer, Server
from loadtest.usage import CALLERS, LOCUST, Sampler, Usage, server_processes

MODELS = ("mimi_encoder", "temporal", "depformer", "mimi_decoder")
_LOCUSTFILE = Path(__file__).with_name("locustfile.py")


@dataclass(frozen=True)
class Result:
    """What a run found. batch: conversations per shared frame, the mean. usage: None for a server elsewhere."""

    plan: Plan
    face: str
    figures: dict[Face, Figures]
    usage: Usage | None
    batch: float | None
    page: Path

    @property
    def frames(self) -> int:
        """Agent frames received, by all."""
        return sum(figures.received for figures in self.figures.values())

    @property
    def slow_client(self) -> bool:
        return any(figures.slow_client for figures in self.figures.values())

    def faults(self) -> list[str]:
        """Why the run did not pass; none if it did."""
        return [f"{face.value}: {fault}" for face, figures in self.figures.items() for fault in figures.faults()]

    def to_json(self) -> dict[str, Any]:
        """For programs. The API key is nobody's business."""
        plan = json.loads(replace(self.plan, api_key="").to_json())
        return {
            "plan": plan | {"face": self.face},
            "passed": not self.faults(),
            "faults": self.faults(),
            "slow_client": self.slow_client,
            "figures": {face.value: figures.to_json() for face, figures in self.figures.items()},
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


def run(server: Server, plan: Plan, face: str, spawn_rate: float, folder: Path) -> Result:
    """Carry out `plan` against `server`, everything written to `folder`. Raises NoServer."""
    page = folder / "report.html"
    before = server.shared_frames()
    with ExitStack() as held:
        log = held.enter_context((folder / "locust.log").open("w"))
        locust = held.enter_context(
            subprocess.Popen(_command(server, plan, face, spawn_rate, page), stdout=log, stderr=log, env=_env(plan))
        )
        watched = {LOCUST: psutil.Process(locust.pid)}
        if server.pid is not None:
            watched |= server_processes(server.pid, MODELS)
        sampler = held.enter_context(Sampler(watched))
        locust.wait()
    if not plan.out_path.exists():
        raise NoServer(f"Locust did not finish; {folder / 'locust.log'} says why")
    told = json.loads(plan.out_path.read_text())
    records = [Record.of_json(record) for record in told["records"]]
    after = server.shared_frames()
    shared = after[1] - before[1]
    usage = None
    if server.pid is not None and told["began"] is not None:
        usage = sampler.between(told["began"], min(told["began"] + plan.seconds, time.monotonic()))
        usage = replace(usage, cpu={**usage.cpu, CALLERS: told["client_cpu_seconds"]})
    faces = sorted({record.face for record in records})
    return Result(
        plan=plan,
        face=face,
        figures={face: Figures.of([record for record in records if record.face is face]) for face in faces},
        usage=usage,
        batch=(after[0] - before[0]) / shared if shared else None,
        page=page,
    )


def _command(server: Server, plan: Plan, face: str, spawn_rate: float, page: Path) -> list[str]:
    options = {
        "-f": _LOCUSTFILE,
        "--host": server.url,
        "--grpc": server.grpc,
        "--face": face,
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
    # In a command line anyone on the machine could read it.
    return {**os.environ, "PERSONAPLEX_API_KEY": plan.api_key}
