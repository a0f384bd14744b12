"""`personaplex config`: the settings of the gateway, their values, and where these come from."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import typer
from pydantic import ValidationError

from gateway.cli.console import CommandError
from gateway.settings import PREFIX, Settings

_SECRET = frozenset({"api_keys", "twilio_auth_tokens", "plivo_auth_tokens", "vonage_signature_secrets"})


@dataclass(frozen=True)
class Setting:
    """One setting. value, default: as JSON; the value of a secret is replaced by its length."""

    variable: str
    value: Any
    default: Any
    source: Literal["default", "environment"]
    description: str


def settings(environment: Mapping[str, str]) -> list[Setting]:
    """All settings as `environment` sets them. Raises CommandError for one that is invalid."""
    try:
        values = Settings().model_dump(mode="json")
    except ValidationError as error:
        first = error.errors()[0]
        name = PREFIX + "_".join(str(part) for part in first["loc"][:1]).upper()
        raise CommandError(f"{name}: {first['msg']}") from None
    defaults = Settings.model_construct().model_dump(mode="json")
    given = {name.upper() for name in environment}
    found = []
    for name, field in Settings.model_fields.items():
        variable = PREFIX + name.upper()
        value = [f"({len(values[name])} hidden)"] if name in _SECRET and values[name] else values[name]
        source: Literal["default", "environment"] = "environment" if variable in given else "default"
        found.append(Setting(variable, value, defaults[name], source, field.description or ""))
    return found


def markdown(found: Sequence[Setting]) -> str:
    """The settings as a page of the documentation."""
    lines = [
        "# Settings",
        "",
        "Environment variables of the gateway. Lists are JSON. `personaplex config` shows the values in use.",
        "",
        "| variable | default | |",
        "|---|---|---|",
        *(f"| `{each.variable}` | `{json.dumps(each.default)}` | {each.description} |" for each in found),
        "",
    ]
    return "\n".join(lines)


def config(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/settings.md.")] = False,
    changed: Annotated[bool, typer.Option(help="Only settings that the environment sets.")] = False,
) -> None:
    """List every setting with its value, where the value comes from, and what it means."""
    found = [each for each in settings(os.environ) if not changed or each.source == "environment"]
    if as_json:
        print(json.dumps([asdict(each) for each in found], indent=2))
    elif as_markdown:
        print(markdown(found), end="")
    else:
        for each in found:
            print(f"{each.variable}={json.dumps(each.value)}  ({each.source})\n    {each.description}")
