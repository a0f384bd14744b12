"""`personaplex download`: the published checkpoint, from the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import DownloadColumn

from gateway.cli.build import explained
from gateway.cli.console import progress, say

REPOSITORY = "nvidia/personaplex-7b-v1"
REVISION = "main"
"""A branch: no commit of the gated release is known here. All files are taken from the one commit it is at then."""


def download(
    out: Annotated[Path, typer.Argument(help="Folder to write: what `personaplex build` takes.")],
    repo: Annotated[
        str, typer.Option(help="Repository on the Hub with a checkpoint in the published layout.")
    ] = REPOSITORY,
    revision: Annotated[str, typer.Option(help="Branch, tag or commit; the commit taken is said.")] = REVISION,
) -> None:
    """Download a checkpoint; go on with one that was cut off. The token of a gated one is taken from HF_TOKEN."""
    from model_repository.checkpoint.download import download_checkpoint, licence_note, needed
    from model_repository.checkpoint.hub import HubRepository

    with explained():
        hub = HubRepository.open(repo, revision)
        say(licence_note(hub.name))
        say(f"{hub.name} at commit {hub.commit}")
        size = sum(file.size for file in needed(hub))
        with progress("downloading", total=size, column=DownloadColumn()) as report:
            found = download_checkpoint(hub, out, report)
    say(f"{out}: {found.bytes / 1e9:.2f} GB, {found.voices} voices; personaplex build {out} MODELS")
