"""Terminal output: results go to stdout; status, progress and one-line errors go to stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from gateway.errors import GatewayError

FAILURE = 2


class CommandError(GatewayError):
    """The command failed; the message is the reason in one line."""


def one_line(message: str) -> str:
    """`message` without its line breaks."""
    return " ".join(message.split())


def print_error(message: str) -> None:
    """Print an error as one line on stderr."""
    print(f"personaplex: error: {one_line(message)}", file=sys.stderr)


def print_status(message: str) -> None:
    """Print a line that is not part of the result on stderr."""
    print(message, file=sys.stderr, flush=True)


_SPEED_PERIOD_S = 120.0
"""The remaining time is estimated from the speed over this period."""


@contextmanager
def progress(
    what: str, total: float | None = None, column: ProgressColumn | None = None
) -> Iterator[Callable[[str | None, float], None]]:
    """Show a progress bar on stderr while the block runs, if stderr is a terminal.

    Args:
        what: description of the work.
        total: amount of work; None if unknown.
        column: shows the completed amount; per cent by default.

    Yields:
        A function that takes a new description (None: unchanged) and the completed amount.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _what, _done: None
        return
    measure = column or _Percent()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), measure, TimeElapsedColumn())
    left = () if total is None else (TextColumn("remaining:"), TimeRemainingColumn())
    with Progress(*columns, *left, console=console, transient=True, speed_estimate_period=_SPEED_PERIOD_S) as bar:
        task = bar.add_task(what, total=total)

        def update(now: str | None, done: float) -> None:
            bar.update(task, description=now, completed=done)

        yield update


class Seconds(ProgressColumn):
    """The completed amount in seconds."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.completed:.1f} s")


class _Percent(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.total is None else f"{task.percentage:.0f} %")
