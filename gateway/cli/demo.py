"""`personaplex demo`: tiny models built and served, one question asked over HTTP, and what it took, in a table."""

from __future__ import annotations

import base64
import logging
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from gateway.cli.build import write_models, write_tiny
from gateway.cli.console import CommandError, progress, say
from gateway.cli.serve import WAIT_EMBEDDED_S, private_settings
from gateway.client import Client

STAGES = ("encode", "temporal", "depformer", "decode")


def demo(
    input: Annotated[Path, typer.Option("--input", "-i", help="The recording to answer.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="WAV to write.")] = Path("answer.wav"),
    folder: Annotated[Path, typer.Option(help="Where checkpoint and models go.")] = Path("build/demo"),
) -> None:
    """Build tiny models of random weights, serve them, and send them a recording."""
    # Imported here so that the other commands start without it.
    from gateway.cli.service import Service

    try:
        question = input.read_bytes()
    except OSError as error:
        raise CommandError(f"cannot read {input}: {error.strerror}") from None
    logging.basicConfig(level=logging.ERROR)
    checkpoint, models = folder / "checkpoint", folder / "models"
    say(f"building tiny models into {folder}")
    write_tiny(checkpoint, force=True)
    write_models(checkpoint, models, force=True)
    say("serving them with Triton and the gateway")
    with Service(private_settings(models), wait=WAIT_EMBEDDED_S) as service:
        say(f"POST {service.url}/v1/respond with {input}")
        with Client(service.url) as client, progress("answering"):
            answer = client.respond({"audio": question}, {"seed": "0"})
        # What it was started for is done, and nobody else knows of it.
        service.stop(now=True)
    try:
        output.write_bytes(base64.b64decode(answer["audio"]))
    except OSError as error:
        raise CommandError(f"cannot write {output}: {error.strerror}") from None
    Console().print(table(answer))
    print(f"{output} written. The tiny model's weights are random, so the answer is noise.")


def table(answer: dict[str, Any]) -> Table:
    """What an answer took; `answer` as `POST /v1/respond` gives it."""
    timings = answer["timings"]
    rows = Table("", "median", "p99", box=None, pad_edge=False)
    for column in rows.columns[1:]:
        column.justify = "right"
    rows.add_row("frames of 80 ms", str(answer["frames"]), "")
    rows.add_row("real-time factor", f"{timings['rtf']:.3f}", "")
    rows.add_row("time to first audio", _ms(timings["time_to_first_audio_ms"]), "")
    rows.add_section()
    for stage in STAGES:
        rows.add_row(stage, _ms(timings["stages"][stage]["median_ms"]), _ms(timings["stages"][stage]["p99_ms"]))
    return rows


def _ms(value: float) -> str:
    return f"{value:.2f} ms"
