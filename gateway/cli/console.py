"""Terminal output: results go to stdout; status, progress and one-line errors go to stderr.

Only the terminal wraps lines: what is printed does not depend on its width.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO

import typer
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
from typer.exceptions import TyperException

from gateway.errors import GatewayError

FAILURE = 2
INSTALL = "pip install .[cpu], or .[gpu] for CUDA"
"""Installs the packages that only models need."""
_WIDE = 1000


class CommandError(GatewayError):
    """The command failed; the message is the reason in one line."""


def one_line(message: str) -> str:
    """`message` without its line breaks."""
    return " ".join(message.split())


def print_error(message: str, name: str = "personaplex") -> None:
    """Print an error of the command `name` as one line on stderr."""
    print(f"{name}: error: {one_line(message)}", file=sys.stderr)


def print_status(message: str) -> None:
    """Print a line that is not part of the result on stderr."""
    print(message, file=sys.stderr, flush=True)


def result_console(file: IO[str] | None = None) -> Console:
    """Return a console that prints tables and lines whole and unchanged, to stdout by default."""
    return Console(file=file, width=_WIDE, soft_wrap=True, markup=False, highlight=False)


def run_app(app: typer.Typer, name: str, arguments: Sequence[str]) -> int:
    """Run the command line of `app`; return its exit code."""
    try:
        code = app(args=list(arguments), prog_name=name, standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except TyperException as error:
        print_error(error.format_message(), name)
        return FAILURE
    except GatewayError as error:
        print_error(error.message, name)
        return FAILURE
    except ModuleNotFoundError as error:
        if (error.name or "gateway").startswith(("gateway", "model_repository")):
            raise
        print_error(f"the package {error.name} is missing: {INSTALL}; the image personaplex-cpu has it", name)
        return FAILURE
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        # The reader of stdout is gone. Without this, Python reports the error again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0


def run_command(command: Callable[..., None], name: str) -> None:
    """Run the command line of a program that is one command, and exit the process."""
    app = typer.Typer(add_completion=False)
    app.command()(command)
    sys.exit(run_app(app, name, sys.argv[1:]))


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
