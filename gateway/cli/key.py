"""`personaplex key`: make an API key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.console import CommandError
from gateway.errors import GatewayError


def key(
    file: Annotated[Path, typer.Argument(help="File of API keys; made if it does not exist.")],
    name: Annotated[str, typer.Argument(help="Name of the key's holder in logs, traces and metrics.")],
    conversations: Annotated[
        int | None, typer.Option(min=0, help="Limit of conversations at once; 0: none. [default: key_conversations]")
    ] = None,
    per_minute: Annotated[
        int | None,
        typer.Option(min=0, help="Limit of conversations begun per minute; 0: none. [default: key_per_minute]"),
    ] = None,
) -> None:
    """Make a random API key, add its hash to a file for PERSONAPLEX_API_KEYS_FILE, and print the key."""
    from gateway.session.keys_file import add_key

    try:
        print(add_key(file, name, conversations, per_minute))
    except GatewayError as error:
        raise CommandError(error.message) from None
