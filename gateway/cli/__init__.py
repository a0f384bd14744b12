"""The `personaplex` command: download, tiny, build, evaluate, voice, serve, respond, key, bench, config, doctor, demo.

Exit codes: 0 success; 2 failure, with the reason in one line on stderr; 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Annotated

import typer

from gateway.cli import admin, bench, build, config, demo, doctor, download, evaluate, key, respond, serve, voice
from gateway.cli.console import run_app
from gateway.cli.examples import epilog

DISTRIBUTION = "personaplex-triton"

app = typer.Typer(name="personaplex", rich_markup_mode="markdown")
PANELS = {
    "Models": (download.download, build.tiny, build.build, evaluate.evaluate),
    "Serving": (demo.demo, serve.serve, respond.respond),
    "Operation": (doctor.doctor, config.config, key.key),
}
"""Commands by their heading in `--help`."""
for panel, commands in PANELS.items():
    for command in commands:
        app.command(rich_help_panel=panel, epilog=epilog(command.__name__))(command)
for panel, name, group, text in (
    ("Models", "voice", voice.app, "Voice presets: add, list, remove."),
    ("Serving", "bench", bench.app, "Run the inputs of a public benchmark through a server: fdb, turnbench."),
    ("Operation", "admin", admin.app, "Operate a running gateway: drain, undrain, status, sessions, end."),
):
    app.add_typer(group, name=name, help=text, rich_help_panel=panel)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit the process."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    return run_app(app, "personaplex", list(given) or ["--help"])


def _print_version(requested: bool) -> None:
    if requested:
        print(f"personaplex {metadata.version(DISTRIBUTION)}")
        raise typer.Exit


@app.callback()
def _personaplex(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Full-duplex speech with PersonaPlex on NVIDIA Triton: build the models, serve them, send them speech."""


__all__ = ["app", "main", "run"]
