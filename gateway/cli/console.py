"""How the commands speak: results to stdout, everything else to stderr, errors as one line."""

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
    """The command cannot do what it was asked; the message says why, in one line."""


def one_line(message: str) -> str:
    """`message` without its line breaks."""
    return " ".join(message.split())


def complain(message: str) -> None:
    """One line on stderr."""
    print(f"personaplex: error: {one_line(message)}", file=sys.stderr)


def say(message: str) -> None:
    """One line for the person who watches, not part of the result."""
    print(message, file=sys.stderr, flush=True)


_SPEED_PERIOD_S = 120.0
"""The time left is told from the speed of this long: parts of one thing differ in theirs."""


@contextmanager
def progress(
    what: str, total: float | None = None, column: ProgressColumn | None = None
) -> Iterator[Callable[[str | None, float], None]]:
    """A bar on stderr while the block runs, on a terminal only.

    Args:
        what: what is being done.
        total: what the whole is; None while nobody knows.
        column: how much is done, in words; by default per cent.

    Yields:
        Called with what is being done now (None: the same as before) and how much of `total` is done.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _what, _done: None
        return
    measure = column or _Percent()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), measure, TimeElapsedColumn())
    left = () if total is None else (TextColumn("left:"), TimeRemainingColumn())
    with Progress(*columns, *left, console=console, transient=True, speed_estimate_period=_SPEED_PERIOD_S) as bar:
        task = bar.add_task(what, total=total)

        def update(now: str | None, done: float) -> None:
            bar.update(task, description=now, completed=done)

        yield update


class Seconds(ProgressColumn):
    """How much is done, for a total in seconds."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.completed:.1f} s")


class _Percent(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.total is None else f"{task.percentage:.0f} %")
