"""`personaplex doctor`: check the requirements, print how to meet the missing ones, and recommend what to do next."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from gateway.cli.checks import Check, Status, fit_published, recommendation, run_checks
from gateway.cli.console import FAILURE, result_console

COLOURS = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "red"}


def doctor(
    models: Annotated[Path | None, typer.Argument(help="A built repository to check too.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the gateway.")] = 8998,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check this machine and recommend what to do next. Exit code 0 if it can serve, else 2."""
    checks = run_checks(models, port)
    runnable = all(check.status is not Status.FAIL for check in checks)
    advice = recommendation(checks, models, fit_published())
    if as_json:
        results = [asdict(check) for check in checks]
        print(json.dumps({"runnable": runnable, "checks": results, "recommendation": advice}))
    else:
        _show(checks)
        print(advice)
    if not runnable:
        raise typer.Exit(FAILURE)


def _show(checks: list[Check]) -> None:
    console = result_console()
    for check in checks:
        status = Text(f"{check.status.value:4}", COLOURS[check.status])
        console.print(status, f" {check.name:15}{check.found}")
        if check.mend:
            console.print(f"{'':21}to mend: {check.mend}")
    count = Counter(check.status for check in checks)
    if count[Status.FAIL]:
        console.print(f"This machine cannot serve yet: {count[Status.FAIL]} checks failed.")
    else:
        console.print("This machine can serve.")
