"""`personaplex bench`: run the inputs of a public benchmark through a server."""

from __future__ import annotations

import asyncio
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.console import CommandError, print_error, print_status, progress

if TYPE_CHECKING:
    from gateway.cli.benchmark import Mode, Options, Sample, SampleResult

app = typer.Typer(rich_markup_mode="markdown", no_args_is_help=True)

Server = Annotated[str, typer.Option(metavar="URL", help="Server to use.")]
Key = Annotated[str | None, typer.Option(metavar="KEY", envvar="PERSONAPLEX_API_KEY", help="API key for that server.")]
Voice = Annotated[str | None, typer.Option(help="Name of a voice preset.")]
Prompt = Annotated[str | None, typer.Option(help="Text prompt. [default: NVIDIA's for the task]")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the sampling.")]
ModeName = Annotated[
    str, typer.Option(metavar="respond|converse", help="respond: as fast as it goes; converse: in real time.")
]
Shift = Annotated[bool, typer.Option("--shift", help="Delay the outputs by 80 ms: what a live listener hears.")]
Jobs = Annotated[int, typer.Option(min=1, help="Conversations at once.")]
Again = Annotated[bool, typer.Option("--again", help="Also samples that have an output already.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="List the samples and their prompts only.")]

SEED = 42424242
SERVER = "http://127.0.0.1:8998"


@app.command()
def fdb(
    root: Annotated[Path, typer.Argument(help="Folder of the benchmark's data: of a version, or of one task.")],
    task: Annotated[list[str] | None, typer.Option(help="Only tasks whose name contains this. Repeatable.")] = None,
    clean: Annotated[bool, typer.Option("--clean", help="The clean inputs of version 1.5.")] = False,
    mode: ModeName = "respond",
    voice: Voice = None,
    prompt: Prompt = None,
    seed: Seed = SEED,
    rate: Annotated[
        int, typer.Option(help="Sample rate of the outputs: 24000, as in published figures, or 16000.")
    ] = 24000,
    shift: Shift = False,
    jobs: Jobs = 4,
    again: Again = False,
    dry_run: DryRun = False,
    server: Server = SERVER,
    api_key: Key = None,
) -> None:
    """Run Full-Duplex-Bench v1 or v1.5: write `output.wav` beside each `input.wav`.

    Stopped, it goes on where it was. A description of the run is written beside ROOT.
    """
    # Imported here because libraries for audio take long to import and most commands do not need them.
    from gateway.cli.benchmark import Options, run_file
    from gateway.cli.full_duplex_bench import find_samples

    if rate not in (16_000, 24_000):
        raise CommandError(f"--rate: expected 24000 or 16000, got {rate}")
    options = Options(server, api_key, _mode(mode), voice, prompt, seed, rate, shift, jobs)
    samples = find_samples(root, clean=clean, tasks=task or ())
    _run(samples, options, run_file(root, "fdb"), again=again, dry_run=dry_run)


@app.command()
def turnbench(
    root: Annotated[Path, typer.Argument(help="Folder of conversations: `ID/speaker_1_audio.flac` and 2, or WAV.")],
    recordings: Annotated[Path, typer.Argument(help="Folder to write: `ID/speaker_1/output.flac` and 2.")],
    mode: ModeName = "converse",
    voice: Voice = None,
    prompt: Prompt = None,
    seed: Seed = SEED,
    shift: Shift = False,
    jobs: Jobs = 4,
    again: Again = False,
    dry_run: DryRun = False,
    server: Server = SERVER,
    api_key: Key = None,
) -> None:
    """Run TurnBench: record the agent in conversation with each speaker, for the benchmark's readouts.

    Stopped, it goes on where it was. A description of the run is written beside RECORDINGS.
    """
    from gateway.cli.benchmark import Options, run_file
    from gateway.cli.turnbench import find_samples

    options = Options(server, api_key, _mode(mode), voice, prompt, seed, shift=shift, jobs=jobs)
    _run(find_samples(root, recordings), options, run_file(recordings, "turnbench"), again=again, dry_run=dry_run)


def _mode(name: str) -> Mode:
    from gateway.cli.benchmark import Mode

    if name not in list(Mode):
        raise CommandError(f"--mode: expected {' or '.join(Mode)}, got {name!r}")
    return Mode(name)


def _run(samples: list[Sample], options: Options, description: Path, *, again: bool, dry_run: bool) -> None:
    """Run the samples that have no output yet, or list them. Raises CommandError if some fail."""
    from gateway.cli.benchmark import is_done, record, run_samples

    if dry_run:
        for sample in samples:
            print(f"{sample.name}\t{sample.task}\t{sample.prompt if options.prompt is None else options.prompt}")
        return
    left = samples if again else [sample for sample in samples if not is_done(sample, options.rate)]
    if len(left) < len(samples):
        print_status(f"{len(samples) - len(left)} samples have an output already")
    results: dict[str, SampleResult] = {}
    failures: list[str] = []
    version = metadata.version("personaplex-triton")
    with progress("running", total=float(len(left))) as report:

        def done(sample: Sample, result: SampleResult | None, reason: str) -> None:
            if result is None:
                failures.append(f"{sample.name}: {reason}")
            else:
                results[sample.name] = result
                record(description, options, results, version)
            report(sample.name, float(len(results) + len(failures)))

        asyncio.run(run_samples(left, options, done))
    for failure in failures:
        print_error(failure)
    print(f"{len(results)} of {len(left)} samples written; see {description}")
    if failures:
        raise CommandError(f"{len(failures)} samples failed; run the command again for them")
