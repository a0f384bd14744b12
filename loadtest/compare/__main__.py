"""`python -m loadtest.compare`: compare this source tree with a base commit."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from gateway.cli.console import result_console, run_command
from loadtest.compare.measurements import Measurements, Options
from loadtest.compare.report import PARTS, Comparison, Pair, PartName, markdown
from loadtest.compare.source_tree import SourceTree, worktree
from loadtest.machine import machine
from loadtest.paths import ROOT


def main(
    base: Annotated[str, typer.Option(help="Commit to compare with.")],
    pairs: Annotated[int, typer.Option(min=1, help="Measurements of each tree, in turn.")] = 3,
    only: Annotated[list[PartName] | None, typer.Option(help="Measure this part only; may be repeated.")] = None,
    users: Annotated[int, typer.Option(min=1, help="Live gRPC users of the CPU measurement.")] = 24,
    cpu_seconds: Annotated[float, typer.Option(min=1, help="Length of the CPU measurement.")] = 30.0,
    first_users: Annotated[int, typer.Option(min=1, help="Where the first capacity search starts.")] = 24,
    step: Annotated[int, typer.Option(min=1, help="Resolution of the capacity search, in users.")] = 2,
    limit: Annotated[int, typer.Option(min=1, help="Highest number of users to try.")] = 128,
    probe_seconds: Annotated[float, typer.Option(min=1, help="Length of the capacity search's short runs.")] = 10.0,
    hold_seconds: Annotated[float, typer.Option(min=1, help="How long the capacity must hold.")] = 60.0,
    tries: Annotated[int, typer.Option(min=1, help="Runs until a number of users counts as not held.")] = 2,
    overhead_rounds: Annotated[int, typer.Option(min=1, help="Rounds of 6 s of the overhead measurement.")] = 4,
    recording_rounds: Annotated[int, typer.Option(min=1, help="Rounds of eight recordings.")] = 5,
    folder: Annotated[Path, typer.Option(help="Folder for models and logs.")] = Path("build/compare"),
    results: Annotated[Path, typer.Option(help="Folder for the JSON file and the table.")] = ROOT / "loadtest/results",
) -> None:
    """Measure this source tree against a base commit, in alternating runs. Exit status 2 if a server fails."""
    console = result_console()
    # Ended from outside, it still stops its servers and removes the worktree.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    began = datetime.now()
    options = Options(
        models=folder / "models",
        logs=folder / f"{began:%Y%m%d-%H%M%S}",
        users=users,
        cpu_seconds=cpu_seconds,
        first_users=first_users,
        step=step,
        limit=limit,
        probe_seconds=probe_seconds,
        hold_seconds=hold_seconds,
        tries=tries,
        overhead_rounds=overhead_rounds,
        recording_rounds=recording_rounds,
    )
    parts: Sequence[PartName] = only or list(PARTS)
    measurements = Measurements(options, console.print)
    with worktree(base) as base_tree:
        this_tree = SourceTree.of("this", ROOT)
        file = results / f"compare-{began:%Y%m%d-%H%M}-{base_tree.commit}-{this_tree.commit.rstrip('+')}"
        about = {
            "date": f"{began:%Y-%m-%d %H:%M}",
            "base": base_tree.commit,
            "this": this_tree.commit,
            "measured": (
                f"CPU with {users} users for {cpu_seconds:g} s; capacity for {hold_seconds:g} s "
                f"(none failed, none missing, p99 < 80 ms, late < 0.1 %)"
            ),
            **machine(),
        }
        found: dict[PartName, list[Pair]] = {part: [] for part in parts}
        for number in range(pairs):
            for part in parts:
                found[part].append(_pair(measurements, part, base_tree, this_tree, number, console))
                _write(file, [Comparison(name, found[name]) for name in parts if found[name]], about)
    console.print(file.with_suffix(".md").read_text())
    console.print(f"written to {file}.json and .md")


def _pair(
    measurements: Measurements, part: PartName, base: SourceTree, this: SourceTree, number: int, console: Console
) -> Pair:
    """Measure both trees; the base goes first in even pairs."""
    measured = {}
    for tree in (base, this) if number % 2 == 0 else (this, base):
        load = os.getloadavg()[0]
        measured[tree.name] = result = measurements.run(part, tree)
        value = f"{result.value:.{PARTS[part].digits}f} {PARTS[part].unit}"
        console.print(
            f"pair {number + 1}, {part.value}, {tree.name}: {value} (load before {load:.1f})", highlight=False
        )
    return Pair(measured[base.name], measured[this.name])


def _write(file: Path, comparisons: Sequence[Comparison], about: dict[str, str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"about": about, "parts": {each.name: each.to_json() for each in comparisons}}
    file.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    file.with_suffix(".md").write_text(markdown(comparisons, about))


if __name__ == "__main__":
    run_command(main, "compare")
