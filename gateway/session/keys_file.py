"""The file of API keys: JSON with names, hashes and limits. The keys themselves are nowhere in it."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from gateway.errors import GatewayError


class KeysFileError(GatewayError):
    """The file cannot be read, or is not one of API keys."""


class KeyEntry(BaseModel):
    """A holder of keys."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """In logs, traces and metrics."""
    sha256: list[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(min_length=1)
    """Of each key, in hexadecimal digits: more than one while a key is replaced."""
    conversations: int | None = Field(None, ge=0)
    """Limit of conversations at once; 0: none. Default: the setting `key_conversations`."""
    per_minute: int | None = Field(None, ge=0)
    """Limit of conversations begun per minute; 0: none. Default: the setting `key_per_minute`."""


class _KeysFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: list[KeyEntry] = Field(min_length=1)

    @model_validator(mode="after")
    def _each_once(self) -> _KeysFile:
        for kind, values in (
            ("name", [entry.name for entry in self.keys]),
            ("hash", [digest for entry in self.keys for digest in entry.sha256]),
        ):
            if len(set(values)) < len(values):
                raise ValueError(f"expected each {kind} once")
        return self


def read_keys(file: Path) -> list[KeyEntry]:
    """Return the entries of a file. Raises KeysFileError."""
    try:
        return _KeysFile.model_validate_json(file.read_bytes()).keys
    except OSError as error:
        raise KeysFileError(f"cannot read {file}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise KeysFileError(f"{file}: {where + ': ' if where else ''}{first['msg']}") from None


def add_key(file: Path, name: str, conversations: int | None, per_minute: int | None) -> str:
    """Make a random key, add its hash to the file and return it. Raises KeysFileError.

    A name that exists gets a further key and the given limits.
    """
    entries = {entry.name: entry for entry in (read_keys(file) if file.exists() else [])}
    key = secrets.token_urlsafe(32)
    hashes = [*(entries[name].sha256 if name in entries else ()), hashlib.sha256(key.encode()).hexdigest()]
    try:
        entries[name] = KeyEntry(name=name, sha256=hashes, conversations=conversations, per_minute=per_minute)
    except ValidationError as error:
        raise KeysFileError(f"{name!r}: {error.errors(include_url=False)[0]['msg']}") from None
    text = _KeysFile(keys=list(entries.values())).model_dump_json(indent=2, exclude_defaults=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        temporary.write_text(text + "\n")
        temporary.replace(file)
    except OSError as error:
        raise KeysFileError(f"cannot write {file}: {error.strerror}") from None
    return key
