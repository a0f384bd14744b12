"""`personaplex tiny` writes a small checkpoint; `personaplex build` builds a checkpoint into a model repository."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.console import CommandError, print_status, progress


def tiny(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    random: Annotated[bool, typer.Option("--random", help="Random weights, whose answers are noise.")] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of random weights. [default: 0]")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that is not empty.")] = False,
) -> None:
    """Write the small speaking checkpoint, which was taught fifty questions, in the published layout."""
    if random:
        write_random(out, seed=seed or 0, force=force)
        print_status(f"{out}: tiny checkpoint of random weights")
        return
    if seed is not None:
        raise CommandError("--seed is for random weights: give --random with it")
    write_tiny(out, force=force)
    print_status(f"{out}: small speaking checkpoint; next: personaplex build {out} MODELS")


def build(
    checkpoint: Annotated[Path, typer.Argument(help="Folder with a checkpoint in any published format.")],
    models: Annotated[Path, typer.Argument(help="Folder to write, for `personaplex serve`.")],
    slots: Annotated[int, typer.Option(min=1, help="Concurrent conversations.")] = 8,
    variant: Annotated[
        str, typer.Option(help="Precision of the weights: fp32, fp16, int8, int4 or mixed; on cuda also bf16.")
    ] = "fp32",
    kv: Annotated[
        str | None,
        typer.Option(help="Precision of keys and values: fp32, fp16 or int8; on cuda int8. [default: the variant's]"),
    ] = None,
    device: Annotated[str, typer.Option(help="Device that runs the models: cpu or cuda.")] = "cpu",
    force: Annotated[
        bool, typer.Option("--force", help="Replace a folder that holds something else, with all its content.")
    ] = False,
) -> None:
    """Build a checkpoint into a Triton model repository."""
    removed = write_models(checkpoint, models, slots=slots, variant=variant, kv=kv, device=device, force=force)
    if removed:
        names = ", ".join(removed)
        print_status(f"{models}: removed added voices, which belong to another checkpoint: {names}")
    print_status(f"{models}: built for {slots} conversations; next: personaplex serve {models}")


def write_tiny(out: Path, *, force: bool = False) -> None:
    """Write the small speaking checkpoint. Raises CommandError."""
    # Imported here because the import of ONNX takes long and most commands do not need it.
    from model_repository.synthetic.speaking.export import write_speaking_checkpoint

    with explained():
        write_speaking_checkpoint(out, force=force)


def write_random(out: Path, *, seed: int = 0, force: bool = False) -> None:
    """Write the tiny checkpoint of random weights. Raises CommandError."""
    from model_repository.synthetic.tiny import write_tiny_checkpoint

    with explained():
        write_tiny_checkpoint(out, seed=seed, force=force)


def write_models(
    checkpoint: Path,
    models: Path,
    *,
    slots: int = 8,
    variant: str = "fp32",
    kv: str | None = None,
    device: str = "cpu",
    force: bool = False,
) -> list[str]:
    """Build the repository with a progress bar and return the added voices that were removed. Raises CommandError."""
    from model_repository.build import build_repository

    with explained(), progress("building", total=1.0) as report:
        return build_repository(
            checkpoint, models, slots=slots, variant=variant, kv=kv, device=device, force=force, progress=report
        )


@contextmanager
def explained() -> Iterator[None]:
    """Raise errors of `model_repository` and of the file system as CommandError."""
    from model_repository.errors import ModelRepositoryError

    try:
        yield
    except ModelRepositoryError as error:
        raise CommandError(str(error)) from None
    except OSError as error:
        raise CommandError(f"{error.filename or 'the disk'}: {error.strerror or error}") from None
