"""`python -m loadtest.soak`: start and end conversations for a long time and check that memory stays level."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.table import Table

from gateway.cli.console import result_console, run_command
from loadtest.churn import APIS, COMPLETED, DROPPED, FAILED, REFUSED, ChurnUsers
from loadtest.memory import ProcessMonitor
from loadtest.paths import RECORDING
from loadtest.plan import Plan
from loadtest.run import MODELS
from loadtest.server import Server, build_tiny, started
from loadtest.speech import Speech
from loadtest.usage import server_processes

_ACTIVE = "personaplex_conversations_active "
# A user that disconnected without notice is detected, and its slot free again, well within this.
_FREE_S = 15.0
_PROGRESS_S = 60.0


def main(
    minutes: Annotated[float, typer.Option(min=0.05, help="Length of the test.")] = 30.0,
    users: Annotated[int, typer.Option(min=1, help="Users at once.")] = 8,
    shortest: Annotated[float, typer.Option(min=0.1, help="Seconds of the shortest conversation.")] = 0.5,
    longest: Annotated[float, typer.Option(min=0.1, help="Seconds of the longest conversation.")] = 20.0,
    drop: Annotated[float, typer.Option(min=0, max=1, help="Share of users that disconnect without notice.")] = 0.3,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two samples of the processes.")] = 5.0,
    seed: Annotated[int, typer.Option(help="Seed of the random lengths, APIs and ends.")] = 1,
    recording: Annotated[Path, typer.Option(help="What users send.")] = RECORDING,
    models: Annotated[
        Path | None, typer.Option(help="A built repository. [default: the small speaking model, built now]")
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where models and results go.")] = Path("build/soak"),
) -> None:
    """Load `personaplex serve` with churn users. Exit status 1 if the test did not pass, 2 if it did not run."""
    console = result_console()
    results = folder / f"{datetime.now():%Y%m%d-%H%M%S}"
    speech = Speech.load(recording)
    results.mkdir(parents=True)
    with TemporaryDirectory(prefix="tiny-", dir=folder) as built:
        # A slot may still be in use for a moment when the next conversation starts.
        repository = models or build_tiny(Path(built), users + max(2, users // 4))
        with started(repository, results / "server.log") as server:
            plan = Plan(server.url, server.grpc, str(recording.resolve()))
            churn = ChurnUsers(plan, speech, users, shortest=shortest, longest=longest, drop=drop, seed=seed)
            console.print(f"{users} users at once for {minutes:g} minutes; results in {results}")
            found = asyncio.run(soak(server, churn, 60 * minutes, every, console))
    (results / "soak.json").write_text(json.dumps(found, indent=1) + "\n")
    show(found, console)
    raise typer.Exit(0 if found["passed"] else 1)


async def soak(server: Server, churn: ChurnUsers, seconds: float, every: float, console: Console) -> dict[str, Any]:
    """Run `churn` for `seconds` against a server started here; return the content of `soak.json`."""
    assert server.pid is not None  # noqa: S101 - it was started here
    monitor = ProcessMonitor(server_processes(server.pid, MODELS), every)
    background = [asyncio.create_task(monitor.run()), asyncio.create_task(_show_progress(monitor, churn, console))]
    began = time.monotonic()
    try:
        await churn.run(seconds)
    finally:
        for task in background:
            task.cancel()
        await asyncio.wait(background)
    took = time.monotonic() - began
    faults = monitor.faults() + [f"failed: {failure}" for failure in churn.failures]
    if left := await _still_active(server):
        faults.append(f"{left:g} conversations still hold a slot")
    if not churn.total(COMPLETED):
        faults.append("no conversation was completed")
    return {
        "passed": not faults,
        "faults": faults,
        "seconds": round(took, 1),
        "conversations": {
            api: {kind: churn.outcomes[api, kind] for kind in (COMPLETED, DROPPED, REFUSED, FAILED)} for api in APIS
        },
        "processes": {name: growth.to_json() for name, growth in monitor.growth().items()},
        "samples": {
            name: {
                "seconds": [round(at, 1) for at in samples.at],
                "rss": samples.rss,
                "files": samples.files,
                "threads": samples.threads,
            }
            for name, samples in monitor.samples.items()
        },
    }


def show(found: dict[str, Any], console: Console) -> None:
    """Print the tables and the verdict."""
    memory = Table("MB", "first", "last", "peak", "per hour", "files", "threads", box=None, pad_edge=False)
    for name, growth in found["processes"].items():
        files, threads = (" → ".join(f"{value:g}" for value in growth[what]) for what in ("files", "threads"))
        sizes = (f"{growth[what]:.1f}" for what in ("first_mb", "last_mb", "peak_mb"))
        memory.add_row(name, *sizes, f"{growth['mb_per_hour']:+.1f}", files, threads)
    calls = Table("conversations", COMPLETED, DROPPED, REFUSED, FAILED, box=None, pad_edge=False)
    for api, outcomes in found["conversations"].items():
        calls.add_row(api, *(str(number) for number in outcomes.values()))
    for table in (memory, calls):
        for column in table.columns[1:]:
            column.justify = "right"
        console.print(table)
        console.print()
    console.print("\n".join(found["faults"]) or "passed")


async def _show_progress(monitor: ProcessMonitor, churn: ChurnUsers, console: Console) -> None:
    """Print a line per minute."""
    began = time.monotonic()
    while True:
        await asyncio.sleep(_PROGRESS_S)
        sizes = ", ".join(f"{name} {samples.rss[-1] / 2**20:.0f} MB" for name, samples in monitor.samples.items())
        minutes = (time.monotonic() - began) / 60
        console.print(f"{minutes:.0f} min: {churn.outcomes.total()} conversations; {sizes}")


async def _still_active(server: Server) -> float:
    """Conversations that still hold a slot after all users have left and the server had time to notice."""
    deadline = time.monotonic() + _FREE_S
    async with httpx.AsyncClient(trust_env=False) as client:
        while True:
            page = (await client.get(f"{server.url}/metrics")).text
            active = next(float(line.split()[1]) for line in page.splitlines() if line.startswith(_ACTIVE))
            if not active or time.monotonic() > deadline:
                return active
            await asyncio.sleep(0.2)


if __name__ == "__main__":
    run_command(main, "soak")
