"""`personaplex download`: download the published checkpoint from the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import DownloadColumn

from gateway.cli.build import explained
from gateway.cli.console import print_status, progress

REPOSITORY = "nvidia/personaplex-7b-v1"
REVISION = "main"
"""A branch. All files are taken from the commit that the branch points to at the start."""


def download(
    out: Annotated[Path, typer.Argument(help="Folder to write, for `personaplex build`.")],
    repo: Annotated[
        str, typer.Option(help="Repository on the Hub with a checkpoint in the published layout.")
    ] = REPOSITORY,
    revision: Annotated[str, typer.Option(help="Branch, tag or commit. The commit is printed.")] = REVISION,
) -> None:
    """Download a checkpoint, or resume a download. HF_TOKEN is the token for gated repositories."""
    from model_repository.checkpoint.hub.download import download_checkpoint, licence_note, needed
    from model_repository.checkpoint.hub.repository import HubRepository

    with explained():
        hub = HubRepository.open(repo, revision)
        print_status(licence_note(hub.name))
        print_status(f"{hub.name} at commit {hub.commit}")
        size = sum(file.size for file in needed(hub))
        with progress("downloading", total=size, column=DownloadColumn()) as report:
            found = download_checkpoint(hub, out, report)
    print_status(f"{out}: {found.bytes / 1e9:.2f} GB, {found.voices} voices; next: personaplex build {out} MODELS")
