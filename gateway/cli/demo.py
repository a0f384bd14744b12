"""`personaplex demo`: serve the small speaking model, ask it a recorded question over HTTP, and print the answer."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from gateway.cli.build import write_models, write_tiny
from gateway.cli.console import CommandError, print_status, progress, result_console
from gateway.cli.serve import WAIT_EMBEDDED_S, private_settings
from gateway.client import Answer, Client

STAGES = ("encode", "temporal", "depformer", "decode")


def demo(
    input: Annotated[
        Path | None, typer.Option("--input", "-i", help="Recording to send. [default: a question that comes with it]")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="WAV file to write.")] = Path("answer.wav"),
    folder: Annotated[Path, typer.Option(help="Folder for the checkpoint and the models.")] = Path("build/demo"),
) -> None:
    """Build and serve the small speaking model, ask it a question, and write its spoken answer."""
    # Imported here because the import takes long and most commands do not need it.
    from gateway.cli.service import Service
    from model_repository.synthetic.speaking.export import QUESTION, QUESTION_TEXT

    recorded = input or QUESTION
    try:
        recording = recorded.read_bytes()
    except OSError as error:
        raise CommandError(f"cannot read {input}: {error.strerror}") from None
    logging.basicConfig(level=logging.ERROR)
    checkpoint, models = folder / "checkpoint", folder / "models"
    print_status(f"building the small speaking model in {folder}")
    write_tiny(checkpoint, force=True)
    write_models(checkpoint, models, force=True)
    print_status("starting Triton and the gateway")
    with Service(private_settings(models), wait=WAIT_EMBEDDED_S) as service:
        print_status(f"POST {service.url}/v1/respond with {recorded.name}")
        with Client(service.url) as client, progress("answering"):
            answer = client.respond(recording, seed=0)
        # There is no other client to wait for.
        service.stop(now=True)
    try:
        output.write_bytes(answer.audio)
    except OSError as error:
        raise CommandError(f"cannot write {output}: {error.strerror}") from None
    result_console().print(table(answer))
    print(f"\nquestion: {QUESTION_TEXT if input is None else input}")
    print(f"answer:   {answer.transcript or '(silence)'}")
    print(f"wrote {output}")


def table(answer: Answer) -> Table:
    """Return the timings of an answer as a table."""
    timings = answer.timings
    rows = Table("", "median", "p99", box=None, pad_edge=False)
    for column in rows.columns[1:]:
        column.justify = "right"
    rows.add_row("frames of 80 ms", str(answer.frames), "")
    rows.add_row("real-time factor", f"{timings['rtf']:.3f}", "")
    rows.add_row("time to first audio", _ms(timings["time_to_first_audio_ms"]), "")
    rows.add_section()
    for stage in STAGES:
        rows.add_row(stage, _ms(timings["stages"][stage]["median_ms"]), _ms(timings["stages"][stage]["p99_ms"]))
    return rows


def _ms(value: float) -> str:
    return f"{value:.2f} ms"
