"""`python -m loadtest.soak`: conversations come and go for a long time; does the server's memory stay level?"""

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

from gateway.cli.console import CommandError
from loadtest.memory import Watch
from loadtest.passers import COMPLETED, FACES, FAILED, REFUSED, VANISHED, Passers
from loadtest.plan import Plan
from loadtest.question import Question
from loadtest.run import MODELS
from loadtest.server import NoServer, Server, build_tiny, started
from loadtest.usage import server_processes

_QUESTION = Path("tests/data/question.wav")
_ACTIVE = "personaplex_conversations_active "
# Those who went without a word are noticed, and their rows given back, well within this.
_FREE_S = 15.0
_TELL_S = 60.0


def main(
    minutes: Annotated[float, typer.Option(min=0.05, help="How long callers come and go.")] = 30.0,
    users: Annotated[int, typer.Option(min=1, help="Callers at once.")] = 8,
    shortest: Annotated[float, typer.Option(min=0.1, help="Seconds of the shortest conversation.")] = 0.5,
    longest: Annotated[float, typer.Option(min=0.1, help="Seconds of the longest.")] = 20.0,
    vanish: Annotated[float, typer.Option(min=0, max=1, help="Share of callers who go without a word.")] = 0.3,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks at the processes.")] = 5.0,
    seed: Annotated[int, typer.Option(help="Of who comes when and goes how.")] = 1,
    recording: Annotated[Path, typer.Option(help="What they say.")] = _QUESTION,
    models: Annotated[Path | None, typer.Option(help="A built repository. [default: tiny models, built now]")] = None,
    folder: Annotated[Path, typer.Option(help="Where models and results go.")] = Path("build/soak"),
) -> None:
    """Load `personaplex serve` with callers who come and go. Ends with 1 if it did not pass, 2 if there was none."""
    console = Console()
    results = folder / f"{datetime.now():%Y%m%d-%H%M%S}"
    try:
        question = Question.load(recording)
        results.mkdir(parents=True)
        with TemporaryDirectory(prefix="tiny-", dir=folder) as built:
            # Those who have just gone may still be on their way out when the next ones come.
            repository = models or build_tiny(Path(built), users + max(2, users // 4))
            with started(repository, results / "server.log") as server:
                plan = Plan(server.url, server.grpc, str(recording.resolve()), "", users)
                passers = Passers(plan, question, shortest=shortest, longest=longest, vanish=vanish, seed=seed)
                console.print(f"{users} callers at once for {minutes:g} minutes; results in {results}")
                told = asyncio.run(soak(server, passers, 60 * minutes, every, console))
    except (NoServer, CommandError) as error:
        Console(stderr=True).print(f"soak: error: {error}", highlight=False)
        raise typer.Exit(2) from None
    (results / "soak.json").write_text(json.dumps(told, indent=1) + "\n")
    show(told, console)
    raise typer.Exit(0 if told["passed"] else 1)


async def soak(server: Server, passers: Passers, seconds: float, every: float, console: Console) -> dict[str, Any]:
    """Run `passers` for so long against a server of ours, and say what was found: what `soak.json` holds."""
    assert server.pid is not None  # noqa: S101 - we started it
    watch = Watch(server_processes(server.pid, MODELS), every)
    background = [asyncio.create_task(watch.run()), asyncio.create_task(_tell(watch, passers, console))]
    began = time.monotonic()
    try:
        await passers.run(seconds)
    finally:
        for task in background:
            task.cancel()
        await asyncio.wait(background)
    took = time.monotonic() - began
    faults = watch.faults() + [f"failed: {failure}" for failure in passers.failures]
    if left := await _still_active(server):
        faults.append(f"{left:g} conversations still hold a slot")
    if not passers.total(COMPLETED):
        faults.append("no conversation was completed")
    return {
        "passed": not faults,
        "faults": faults,
        "seconds": round(took, 1),
        "conversations": {
            face: {kind: passers.outcomes[face, kind] for kind in (COMPLETED, VANISHED, REFUSED, FAILED)}
            for face in FACES
        },
        "processes": {name: growth.to_json() for name, growth in watch.growth().items()},
        "samples": {
            name: {
                "seconds": [round(at, 1) for at in samples.at],
                "rss": samples.rss,
                "files": samples.files,
                "threads": samples.threads,
            }
            for name, samples in watch.samples.items()
        },
    }


def show(told: dict[str, Any], console: Console) -> None:
    """To the terminal."""
    memory = Table("MB", "first", "last", "peak", "per hour", "files", "threads", box=None, pad_edge=False)
    for name, growth in told["processes"].items():
        files, threads = (" → ".join(f"{value:g}" for value in growth[what]) for what in ("files", "threads"))
        sizes = (f"{growth[what]:.1f}" for what in ("first_mb", "last_mb", "peak_mb"))
        memory.add_row(name, *sizes, f"{growth['mb_per_hour']:+.1f}", files, threads)
    calls = Table("conversations", COMPLETED, VANISHED, REFUSED, FAILED, box=None, pad_edge=False)
    for face, outcomes in told["conversations"].items():
        calls.add_row(face, *(str(number) for number in outcomes.values()))
    for table in (memory, calls):
        for column in table.columns[1:]:
            column.justify = "right"
        console.print(table)
        console.print()
    console.print("\n".join(told["faults"]) or "passed", highlight=False)


async def _tell(watch: Watch, passers: Passers, console: Console) -> None:
    """A line now and then, for those who wait."""
    began = time.monotonic()
    while True:
        await asyncio.sleep(_TELL_S)
        sizes = ", ".join(f"{name} {samples.rss[-1] / 2**20:.0f} MB" for name, samples in watch.samples.items())
        minutes = (time.monotonic() - began) / 60
        console.print(f"{minutes:.0f} min: {passers.outcomes.total()} conversations; {sizes}", highlight=False)


async def _still_active(server: Server) -> float:
    """Conversations that hold a slot although everybody is gone, once there was time to notice."""
    deadline = time.monotonic() + _FREE_S
    async with httpx.AsyncClient(trust_env=False) as client:
        while True:
            page = (await client.get(f"{server.url}/metrics")).text
            active = next(float(line.split()[1]) for line in page.splitlines() if line.startswith(_ACTIVE))
            if not active or time.monotonic() > deadline:
                return active
            await asyncio.sleep(0.2)


if __name__ == "__main__":
    typer.run(main)
