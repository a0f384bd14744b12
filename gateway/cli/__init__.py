"""The `personaplex` command: download, tiny, build, evaluate, voice, serve, respond, doctor, demo.

Exit codes: 0 done; 2 it could not be done, with one line on stderr that says why; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated

import typer
from typer.exceptions import TyperException

from gateway.cli import admin, build, demo, doctor, download, evaluate, respond, serve, voice
from gateway.cli.console import FAILURE, complain
from gateway.errors import GatewayError

DISTRIBUTION = "personaplex-triton"

app = typer.Typer(name="personaplex", add_completion=False, rich_markup_mode=None)
for command in (
    download.download,
    build.tiny,
    build.build,
    evaluate.evaluate,
    serve.serve,
    respond.respond,
    doctor.doctor,
    demo.demo,
):
    app.command()(command)
app.add_typer(voice.app, name="voice", help="Voice presets: add, list, remove.")
app.add_typer(admin.app, name="admin", help="Operate a running gateway: drain, undrain, status, sessions, end.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and ends the process."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; its exit code."""
    try:
        given = sys.argv[1:] if arguments is None else arguments
        code = app(args=list(given) or ["--help"], prog_name="personaplex", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except TyperException as error:
        complain(error.format_message())
        return FAILURE
    except GatewayError as error:
        complain(error.message)
        return FAILURE
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        # Whoever read our result has had enough; Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0


def _say_version(wanted: bool) -> None:
    if wanted:
        print(f"personaplex {metadata.version(DISTRIBUTION)}")
        raise typer.Exit


@app.callback()
def _personaplex(
    version: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", is_eager=True, callback=_say_version)
    ] = False,
) -> None:
    """Spoken answers from PersonaPlex on NVIDIA Triton: build the models, serve them, ask them."""


__all__ = ["app", "main", "run"]
