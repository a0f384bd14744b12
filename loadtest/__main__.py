"""`python -m loadtest`: start a server, load it with users for a time, and print the statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from gateway.cli.console import result_console, run_command
from loadtest.fake_device.profiles import PROFILES, Profile
from loadtest.paths import RECORDING, ROOT
from loadtest.plan import Starts, address
from loadtest.record import Api
from loadtest.report import record, show, write
from loadtest.result import Result
from loadtest.run import Load, run
from loadtest.search import highest
from loadtest.server import Server, build_random, build_tiny, started
from loadtest.speech import Speech

SEARCH_SLOTS = 128


class UsedApi(StrEnum):
    """The API that users connect to; mixed: all of them."""

    GRPC = "grpc"
    WEBSOCKET = "websocket"
    LIVE = "live"
    REALTIME = "realtime"
    TWILIO = "twilio"
    REST = "rest"
    MIXED = "mixed"


def main(
    users: Annotated[int, typer.Option(min=1, help="Users at once.")] = 32,
    seconds: Annotated[float, typer.Option(min=1, help="How long they send.")] = 60.0,
    api: Annotated[UsedApi, typer.Option(help="The API they connect to.")] = UsedApi.GRPC,
    starts: Annotated[
        Starts,
        typer.Option(
            help="spread: once all are admitted, spread over the 80 ms of a frame; together: then, at one instant; "
            "admitted: each at once."
        ),
    ] = "spread",
    spawn_rate: Annotated[float, typer.Option(min=0.1, help="Users started per second.")] = 50.0,
    drain: Annotated[float, typer.Option(min=0, help="Seconds for the last frames to arrive.")] = 2.0,
    recording: Annotated[Path, typer.Option(help="What they send.")] = RECORDING,
    models: Annotated[Path | None, typer.Option(help="A built repository. [default: a small one, built now]")] = None,
    fake_device: Annotated[
        Profile | None, typer.Option(help="Serve models that take this GPU's time for the 7B, but compute nothing.")
    ] = None,
    full_windows: Annotated[
        bool, typer.Option(help="On a fake device: every conversation takes the time of a full window.")
    ] = True,
    slots: Annotated[int | None, typer.Option(min=1, help="Of the models built here. [default: the users]")] = None,
    server: Annotated[str | None, typer.Option(metavar="URL", help="Load a running server.")] = None,
    grpc: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Its gRPC port, or a URL of it. [default: 8999 of its host]")
    ] = "",
    api_key: Annotated[str, typer.Option(envvar="PERSONAPLEX_API_KEY", help="Sent by every user.")] = "",
    find_highest: Annotated[
        bool,
        typer.Option("--find-highest", help="Search for the highest number of users that holds, starting at --users."),
    ] = False,
    step: Annotated[int, typer.Option(min=1, help="Resolution of that search.")] = 4,
    folder: Annotated[Path, typer.Option(help="Folder for models and results.")] = Path("build/loadtest"),
    record_as: Annotated[
        str | None, typer.Option("--record", metavar="NAME", help="Keep the result in loadtest/results too.")
    ] = None,
) -> None:
    """Load a server with users in real time. Exit status 1 if the run did not pass, 2 if it did not run."""
    console = result_console()
    date = f"{datetime.now():%Y-%m-%d %H:%M}"
    # Users of the Realtime API need an agent that speaks all the time.
    random_weights = api in (UsedApi.REALTIME, UsedApi.MIXED)

    def load_with(at: Server, count: int) -> Result:
        results = _fresh(folder / f"{datetime.now():%Y%m%d-%H%M%S}-{api.value}-{count}")
        load = Load(
            users=count,
            seconds=seconds,
            apis=tuple(Api) if api is UsedApi.MIXED else (Api(api.value),),
            starts=starts,
            recording=recording,
            drain=drain,
            api_key=api_key,
            spawn_rate=spawn_rate,
        )
        console.print(f"{count} users over {api.value} for {seconds:g} s; results in {results}")
        result = run(at, load, results)
        write(result, results)
        if record_as is not None:
            used = models or ("random weights" if random_weights else "the small speaking model")
            if fake_device:
                used = f"fake device {fake_device.value}"
            setup = f"{used}; {count} users over {api.value} for {seconds:g} s; {date}"
            record(result, setup, ROOT / "loadtest" / "results" / f"{record_as}-{count}")
        return result

    def holds(at: Server, count: int) -> bool:
        result = load_with(at, count)
        show(result, console)
        return not result.faults()

    # The users' process reads it again; report an unusable file before anything is started.
    Speech.load(recording)
    capacity = slots or (SEARCH_SLOTS if find_highest else users)

    def build(empty: Path) -> Path:
        if fake_device is None:
            return models or (build_random if random_weights else build_tiny)(empty, capacity)
        # Importing the builder takes a second, which other runs do without.
        from loadtest.fake_device.build import write_fake_repository

        return write_fake_repository(
            empty / "models",
            PROFILES[fake_device],
            capacity,
            full_windows=full_windows,
        )

    with _server(folder, build, server, grpc) as at:
        if find_highest:
            found = highest(lambda count: holds(at, count), users, capacity, step)
            console.print(f"{found} users over {api.value} hold")
            passed = found > 0
        else:
            result = load_with(at, users)
            show(result, console)
            passed = not result.faults()
    raise typer.Exit(0 if passed else 1)


@contextmanager
def _server(folder: Path, build: Callable[[Path], Path], url: str | None, grpc: str) -> Iterator[Server]:
    if url is not None:
        address(url)
        yield Server(url.rstrip("/"), grpc)
        return
    folder.mkdir(parents=True, exist_ok=True)
    # A folder of its own, so that two runs at once do not overwrite each other's models.
    log = folder / f"server-{datetime.now():%Y%m%d-%H%M%S}.log"
    with TemporaryDirectory(prefix="models-", dir=folder) as built, started(build(Path(built)), log) as server:
        yield server


def _fresh(folder: Path) -> Path:
    """Create `folder`; fails if it exists, so that results are never overwritten."""
    folder.mkdir(parents=True)
    return folder


if __name__ == "__main__":
    run_command(main, "loadtest")
