"""`personaplex bench`: run the inputs of a public benchmark through a server."""

from __future__ import annotations

import asyncio
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.console import CommandError, print_error, print_status, progress

app = typer.Typer(rich_markup_mode="markdown", no_args_is_help=True)


@app.callback()
def _bench() -> None:
    """Keeps `fdb` a subcommand while it is the only one."""


@app.command()
def fdb(
    root: Annotated[Path, typer.Argument(help="Folder of the benchmark's data: of a version, or of one task.")],
    task: Annotated[list[str] | None, typer.Option(help="Only tasks whose name contains this. Repeatable.")] = None,
    clean: Annotated[bool, typer.Option("--clean", help="The clean inputs of version 1.5.")] = False,
    mode: Annotated[
        str, typer.Option(metavar="respond|converse", help="respond: as fast as it goes; converse: in real time.")
    ] = "respond",
    voice: Annotated[str | None, typer.Option(help="Name of a voice preset.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Text prompt. [default: NVIDIA's for the task]")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampling.")] = 42424242,
    rate: Annotated[
        int, typer.Option(help="Sample rate of the outputs: 24000, as in published figures, or 16000.")
    ] = 24000,
    shift: Annotated[
        bool, typer.Option("--shift", help="Delay the outputs by 80 ms: what a live listener hears.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Conversations at once.")] = 4,
    again: Annotated[bool, typer.Option("--again", help="Also samples that have an output already.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the samples and their prompts only.")] = False,
    server: Annotated[str, typer.Option(metavar="URL", help="Server to use.")] = "http://127.0.0.1:8998",
    api_key: Annotated[
        str | None, typer.Option(metavar="KEY", envvar="PERSONAPLEX_API_KEY", help="API key for that server.")
    ] = None,
) -> None:
    """Run Full-Duplex-Bench v1 or v1.5: write `output.wav` beside each `input.wav`.

    Stopped, it goes on where it was. A description of the run is written beside ROOT.
    """
    # Imported here because libraries for audio take long to import and most commands do not need them.
    from gateway.cli.full_duplex_bench import (
        Mode,
        Options,
        Sample,
        SampleResult,
        find_samples,
        is_done,
        record,
        run_file,
        run_samples,
    )

    if mode not in list(Mode):
        raise CommandError(f"--mode: expected {' or '.join(Mode)}, got {mode!r}")
    if rate not in (16_000, 24_000):
        raise CommandError(f"--rate: expected 24000 or 16000, got {rate}")
    samples = find_samples(root, clean=clean, tasks=task or ())
    if dry_run:
        for sample in samples:
            print(f"{sample.input.relative_to(root)}\t{sample.task}\t{sample.prompt if prompt is None else prompt}")
        return
    left = samples if again else [sample for sample in samples if not is_done(sample, rate)]
    if len(left) < len(samples):
        print_status(f"{len(samples) - len(left)} samples have an output already")
    options = Options(server, api_key, Mode(mode), voice, prompt, seed, rate, shift, jobs)
    results: dict[str, SampleResult] = {}
    failures: list[str] = []
    version = metadata.version("personaplex-triton")
    with progress("running", total=float(len(left))) as report:

        def done(sample: Sample, result: SampleResult | None, reason: str) -> None:
            name = str(sample.input.relative_to(root))
            if result is None:
                failures.append(f"{name}: {reason}")
            else:
                results[name] = result
                record(root, options, results, version)
            report(name, float(len(results) + len(failures)))

        asyncio.run(run_samples(left, options, done))
    for failure in failures:
        print_error(failure)
    print(f"{len(results)} of {len(left)} samples written; see {run_file(root)}")
    if failures:
        raise CommandError(f"{len(failures)} samples failed; run the command again for them")
