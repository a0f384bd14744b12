"""`personaplex tiny` and `personaplex build`: a random checkpoint, and from any checkpoint the folder to serve."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.console import CommandError, progress, say


def tiny(
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that holds something else.")] = False,
) -> None:
    """Write a small checkpoint of random weights, in the published layout: for trying things out, not for answers."""
    write_tiny(out, seed=seed, force=force)
    say(f"{out}: a tiny checkpoint; its weights are random")


def build(
    checkpoint: Annotated[Path, typer.Argument(help="Folder in any published format.")],
    models: Annotated[Path, typer.Argument(help="Folder to write: what `personaplex serve` takes.")],
    slots: Annotated[int, typer.Option(min=1, help="Conversations at once.")] = 8,
    variant: Annotated[
        str, typer.Option(help="Precision of the weights: fp32, fp16, int8, int4 or mixed; on cuda bf16 too.")
    ] = "fp32",
    kv: Annotated[
        str | None, typer.Option(help="Precision of keys and values: fp32, fp16 or int8. [default: the variant's]")
    ] = None,
    device: Annotated[str, typer.Option(help="Where it shall run: cpu or cuda.")] = "cpu",
    force: Annotated[
        bool, typer.Option("--force", help="Replace a folder that holds something else, with all that is in it.")
    ] = False,
) -> None:
    """Build a checkpoint into a repository of Triton models."""
    dropped = write_models(checkpoint, models, slots=slots, variant=variant, kv=kv, device=device, force=force)
    if dropped:
        say(f"{models}: voices added before, from another checkpoint's build, are gone: {', '.join(dropped)}")
    say(f"{models}: built for {slots} conversations; personaplex serve {models}")


def write_tiny(out: Path, *, seed: int = 0, force: bool = False) -> None:
    """Writes the tiny checkpoint. Raises CommandError."""
    # Building needs ONNX; serving and asking do not wait for its import.
    from model_repository.tiny import write_tiny_checkpoint

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
    """Builds the repository, with a bar on a terminal; see `build_repository`. Raises CommandError."""
    from model_repository.build import build_repository

    with explained(), progress("building", total=1.0) as report:
        return build_repository(
            checkpoint, models, slots=slots, variant=variant, kv=kv, device=device, force=force, progress=report
        )


@contextmanager
def explained() -> Iterator[None]:
    """Turns errors of the models' side, inside, into CommandError."""
    from model_repository.errors import ModelRepositoryError

    try:
        yield
    except ModelRepositoryError as error:
        raise CommandError(str(error)) from None
    except OSError as error:
        raise CommandError(f"{error.filename or 'the disk'}: {error.strerror or error}") from None
