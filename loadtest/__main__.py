"""`python -m loadtest`: start what is needed, let so many callers speak for so long, print what they got."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console

from gateway.cli.console import CommandError
from loadtest.fake_device.profiles import PROFILES, Profile
from loadtest.plan import Phases, Plan
from loadtest.question import Question
from loadtest.report import show, write
from loadtest.run import Result, run
from loadtest.search import highest
from loadtest.server import NoServer, Server, build_tiny, started

MOST_SLOTS = 128
_QUESTION = Path("tests/data/question.wav")


class Through(StrEnum):
    """Which face callers come through."""

    GRPC = "grpc"
    WEBSOCKET = "websocket"
    REST = "rest"
    MIXED = "mixed"


def main(
    users: Annotated[int, typer.Option(min=1, help="Callers at once.")] = 32,
    seconds: Annotated[float, typer.Option(min=1, help="How long they speak.")] = 60.0,
    face: Annotated[Through, typer.Option(help="Which face they come through.")] = Through.GRPC,
    phases: Annotated[
        Phases, typer.Option(help="spread: callers begin all over the 80 ms of a frame; together: at one instant.")
    ] = "spread",
    spawn_rate: Annotated[float, typer.Option(min=0.1, help="Callers per second, until all are in.")] = 50.0,
    drain: Annotated[float, typer.Option(min=0, help="Seconds for the last frames to come.")] = 2.0,
    recording: Annotated[Path, typer.Option(help="What they say.")] = _QUESTION,
    models: Annotated[Path | None, typer.Option(help="A built repository. [default: tiny models, built now]")] = None,
    fake_device: Annotated[
        Profile | None, typer.Option(help="Serve models that take this GPU's time for the 7B, but compute nothing.")
    ] = None,
    full_windows: Annotated[
        bool, typer.Option(help="On a fake device: every conversation takes the time of a full window.")
    ] = True,
    chunked_prefill: Annotated[
        bool, typer.Option(help="On a fake device: a prefill takes a chunk of positions per run, not one.")
    ] = False,
    slots: Annotated[int | None, typer.Option(min=1, help="Of the tiny models. [default: the callers]")] = None,
    server: Annotated[str | None, typer.Option(metavar="URL", help="One that runs already; with --grpc.")] = None,
    grpc: Annotated[str, typer.Option(metavar="HOST:PORT", help="Its gRPC port.")] = "127.0.0.1:8999",
    api_key: Annotated[str, typer.Option(envvar="PERSONAPLEX_API_KEY", help="Shown by every caller.")] = "",
    find_highest: Annotated[
        bool, typer.Option("--find-highest", help="How many hold? --users is where it begins.")
    ] = False,
    step: Annotated[int, typer.Option(min=1, help="How exactly to find that.")] = 4,
    folder: Annotated[Path, typer.Option(help="Where models and results go.")] = Path("build/loadtest"),
) -> None:
    """Load a server with callers who speak in real time. Ends with 1 if the run did not pass, 2 if there was none."""
    console = Console()

    def one(at: Server, callers: int) -> Result:
        results = _fresh(folder / f"{datetime.now():%Y%m%d-%H%M%S}-{face.value}-{callers}")
        plan = Plan(
            server=at.url,
            grpc=at.grpc,
            recording=str(recording.resolve()),
            out=str(results / "records.json"),
            users=callers,
            seconds=seconds,
            phases=phases,
            drain=drain,
            api_key=api_key,
        )
        console.print(f"{callers} callers over {face.value} for {seconds:g} s; results in {results}")
        result = run(at, plan, face.value, spawn_rate, results)
        write(result, results)
        return result

    def holds(at: Server, callers: int) -> bool:
        result = one(at, callers)
        show(result, console)
        return not result.faults()

    try:
        # Workers read it again; what is wrong with it is better said before anything is started.
        Question.load(recording)
        room = slots or (MOST_SLOTS if find_highest else users)

        def build(empty: Path) -> Path:
            if fake_device is None:
                return models or build_tiny(empty, room)
            # Importing the builder takes a second, which other runs do without.
            from loadtest.fake_device.build import write_fake_repository

            return write_fake_repository(
                empty / "models",
                PROFILES[fake_device],
                room,
                full_windows=full_windows,
                chunked_prefill=chunked_prefill,
            )

        with _server(folder, build, server, grpc) as at:
            if find_highest:
                found = highest(lambda callers: holds(at, callers), users, room, step)
                console.print(f"{found} callers over {face.value} hold")
                passed = found > 0
            else:
                result = one(at, users)
                show(result, console)
                passed = not result.faults()
    except (NoServer, CommandError) as error:
        Console(stderr=True).print(f"loadtest: error: {error}", highlight=False)
        raise typer.Exit(2) from None
    raise typer.Exit(0 if passed else 1)


@contextmanager
def _server(folder: Path, build: Callable[[Path], Path], url: str | None, grpc: str) -> Iterator[Server]:
    if url is not None:
        if not url.startswith("http://"):
            raise NoServer(f"--server: expected http://HOST:PORT, got {url!r}; TLS is not spoken here")
        yield Server(url.rstrip("/"), grpc)
        return
    folder.mkdir(parents=True, exist_ok=True)
    # Two runs at once disturb each other's figures, but should not take each other's models away.
    log = folder / f"server-{datetime.now():%Y%m%d-%H%M%S}.log"
    with TemporaryDirectory(prefix="models-", dir=folder) as built, started(build(Path(built)), log) as server:
        yield server


def _fresh(folder: Path) -> Path:
    """A folder that was not there: results are never written over."""
    folder.mkdir(parents=True)
    return folder


if __name__ == "__main__":
    typer.run(main)
