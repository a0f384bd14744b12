"""`python -m loadtest.fleet`: print a table of refused calls by size of the fleet and way to pick a pod."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.cli.console import run_command
from loadtest.fleet.simulation import (
    Attempts,
    Load,
    allocator,
    at_random,
    erlang_b,
    least_connections,
    round_robin,
    simulate,
)

SIZES = ((1, 32), (4, 32), (16, 32), (64, 32), (256, 64), (1000, 64))


def main(
    calls: Annotated[int, typer.Option(min=1000, help="Calls per cell.")] = 100_000,
    load: Annotated[float, typer.Option(min=0.01, max=2, help="Mean calls in progress over all slots.")] = 0.9,
    burst: Annotated[float, typer.Option(min=1, help="Mean number of calls that arrive together.")] = 4.0,
    failures: Annotated[float, typer.Option(min=0, help="Failures per pod and hour.")] = 0.02,
    drains: Annotated[float, typer.Option(min=0, help="Drains per pod and hour.")] = 0.1,
    largest: Annotated[int, typer.Option(min=1, help="Largest number of pods.")] = 1000,
) -> None:
    """Refused calls in percent: while a slot was free + while none was."""
    typer.echo("| pods × slots | Erlang B, pod | Erlang B, pool | " + " | ".join(_ways(1)) + " |")
    typer.echo("|---" * (3 + len(_ways(1))) + "|")
    for pods, slots in SIZES:
        if pods > largest:
            continue
        of = Load(pods, slots, load, burst=burst, failures=failures, drains=drains, calls=calls)
        cells = [
            f"{100 * erlang_b(slots, load * slots):.2f}",
            f"{100 * erlang_b(pods * slots, load * pods * slots):.2f}",
        ]
        for attempts in _ways(pods).values():
            found = simulate(of, attempts)
            tries = found.attempts / found.calls
            cells.append(f"{100 * found.wrong / found.calls:.3f} + {100 * found.full / found.calls:.2f} ({tries:.2f})")
        typer.echo(f"| {pods} × {slots} | " + " | ".join(cells) + " |")


def _ways(pods: int) -> dict[str, Attempts]:
    return {
        "random": at_random,
        "least connections, 0 retries": least_connections(0),
        "least connections, 3 retries": least_connections(3),
        "round robin, 3 retries": round_robin(3),
        "round robin, every pod": round_robin(pods),
        "allocator": allocator,
    }


if __name__ == "__main__":
    run_command(main, "fleet")
