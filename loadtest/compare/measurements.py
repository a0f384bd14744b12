"""The four measurements of a comparison: each runs against one source tree and returns one number with details."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from loadtest import rest
from loadtest.compare.source_tree import SourceTree
from loadtest.paths import RECORDING
from loadtest.record import Api, Outcome, Record
from loadtest.result import Result
from loadtest.run import Load, run
from loadtest.search import highest
from loadtest.server import NoServer, Server, environment, started
from loadtest.speech import Speech
from loadtest.usage import machine_seconds

OVERHEAD = ("loadtest.bench.service.overhead", "tests.benchmarks.overhead")
"""The benchmark of the overhead, by what it has been called."""
OVERHEAD_SLOTS = 2
RECORDINGS = 8


@dataclass(frozen=True)
class Options:
    """How long and how much is measured; times in seconds.

    users: of the CPU measurement. first_users, step, limit: of the capacity search. probe: length of the search's
    short runs; hold: length of the run that confirms its result. tries: runs of a number of users until it counts as
    not held. models, logs: folders for built repositories and for logs and results of runs.
    """

    models: Path
    logs: Path
    users: int = 24
    cpu_seconds: float = 30.0
    first_users: int = 24
    step: int = 2
    limit: int = 128
    probe_seconds: float = 10.0
    hold_seconds: float = 60.0
    tries: int = 2
    overhead_rounds: int = 4
    overhead_frames: int = 75
    recording_rounds: int = 5


@dataclass(frozen=True)
class Measured:
    """One measurement of one tree."""

    value: float
    detail: dict[str, Any] = field(default_factory=dict)


class Measurements:
    """Runs measurements; remembers each tree's capacity as the start of its next search."""

    def __init__(self, options: Options, show: Callable[[str], None]) -> None:
        """`show` receives progress, one line at a time."""
        self._options = options
        self._show = show
        self._capacities: dict[str, int] = {}
        self._runs = 0
        self._parts: dict[str, Callable[[SourceTree], Measured]] = {
            "cpu": self._cpu,
            "capacity": self._capacity,
            "overhead": self._overhead,
            "recordings": self._recordings,
        }

    def run(self, part: str, tree: SourceTree) -> Measured:
        """Measure `part` once. Raises NoServer."""
        began, busy = time.monotonic(), machine_seconds()
        measured = self._parts[part](tree)
        seconds = time.monotonic() - began
        cores = (machine_seconds() - busy) / seconds
        return replace(
            measured, detail={**measured.detail, "seconds": round(seconds, 1), "busy_cores": round(cores, 2)}
        )

    def _cpu(self, tree: SourceTree) -> Measured:
        """Milliseconds of gateway CPU per agent frame that a live gRPC user received."""
        options = self._options
        with started(tree.models(options.models, options.users), self._log(tree, "cpu"), tree.path) as server:
            result = self._load(server, options.users, options.cpu_seconds)
        per_frame = result.cpu_per_frame()
        if per_frame is None:
            raise NoServer(f"{tree.name}: no frame was received: {'; '.join(result.faults())}")
        return Measured(per_frame["gateway"], _details(result))

    def _capacity(self, tree: SourceTree) -> Measured:
        """Highest number of live gRPC users that holds for `hold_seconds`."""
        options = self._options
        runs: list[dict[str, Any]] = []
        with started(tree.models(options.models, options.limit), self._log(tree, "capacity"), tree.path) as server:

            def holds(users: int, seconds: float) -> bool:
                for _ in range(options.tries):
                    result = self._load(server, users, seconds)
                    faults = result.faults()
                    runs.append({"users": users, "run_seconds": seconds, "held": not faults, **_details(result)})
                    self._show(f"    {users} users for {seconds:g} s: {'; '.join(faults) or 'held'}")
                    if not faults:
                        return True
                return False

            first = self._capacities.get(tree.name, options.first_users)
            found = highest(lambda users: holds(users, options.probe_seconds), first, options.limit, options.step)
            while found and not holds(found, options.hold_seconds):
                found -= options.step
        self._capacities[tree.name] = found or options.first_users
        return Measured(found, {"runs": runs})

    def _overhead(self, tree: SourceTree) -> Measured:
        """Milliseconds that gateway and Triton add to the graphs for one live gRPC user, by its own benchmark."""
        options, log = self._options, self._log(tree, "overhead")
        module = next(name for name in OVERHEAD if tree.path.joinpath(*name.split(".")).with_suffix(".py").is_file())
        arguments = {
            "--models": tree.models(options.models, OVERHEAD_SLOTS).resolve(),
            "--rounds": options.overhead_rounds,
            "--frames": options.overhead_frames,
            "--out": log.with_suffix("").resolve(),
        }
        command = [sys.executable, "-m", module, *(str(word) for pair in arguments.items() for word in pair)]
        with log.open("w") as file:
            done = subprocess.run(command, cwd=tree.path, env=environment(tree.path), stdout=file, stderr=file)
        if done.returncode:
            raise NoServer(f"overhead of {tree.name}: {module} failed, see {log}")
        found = json.loads((log.with_suffix("") / "overhead.json").read_text())
        return Measured(found["added"], {"graphs": found["graphs"], "ratio": found["ratio"]})

    def _recordings(self, tree: SourceTree) -> Measured:
        """Seconds until RECORDINGS recordings, sent at once, are answered; the median of several rounds."""
        models = tree.models(self._options.models, RECORDINGS)
        with started(models, self._log(tree, "recordings"), tree.path) as server:
            # The first round warms up.
            rounds = [asyncio.run(_respond_all(server)) for _ in range(self._options.recording_rounds + 1)][1:]
        return Measured(statistics.median(rounds), {"rounds": [round(seconds, 3) for seconds in rounds]})

    def _load(self, server: Server, users: int, seconds: float) -> Result:
        self._runs += 1
        folder = self._options.logs / f"run-{self._runs:03}-{users}"
        folder.mkdir(parents=True)
        return run(server, Load(users, seconds), folder)

    def _log(self, tree: SourceTree, part: str) -> Path:
        self._runs += 1
        self._options.logs.mkdir(parents=True, exist_ok=True)
        return self._options.logs / f"server-{self._runs:03}-{tree.name}-{part}.log"


def _details(result: Result) -> dict[str, Any]:
    """What else a load run found; times in milliseconds."""
    stats = result.stats[Api.GRPC]
    per_frame = result.cpu_per_frame() or {}
    others = result.usage.others / result.usage.seconds if result.usage else None
    return {
        "triton_ms": per_frame.get("triton"),
        "client_ms": per_frame.get("client"),
        "p99_ms": stats.latency.p99 if stats.latency else None,
        "late_share": stats.late_share,
        "missing": stats.missing,
        "failed": stats.failed,
        "batch": result.batch,
        "other_load": others,
    }


async def _respond_all(server: Server) -> float:
    """Seconds from sending RECORDINGS requests until the last answer is complete. Raises NoServer if one fails."""
    speech = Speech.load(RECORDING)
    records = [Record(Api.REST, user, len(speech.frames)) for user in range(RECORDINGS)]
    async with httpx.AsyncClient(base_url=server.url, headers=rest.HEADERS, timeout=120, trust_env=False) as client:
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for record in records:
                group.create_task(rest.respond(client, speech.respond_body(record.user), record, time.monotonic))
        seconds = time.monotonic() - began
    for record in records:
        if record.outcome is not Outcome.COMPLETED:
            raise NoServer(f"a recording was not answered: {record.reason}")
    return seconds
