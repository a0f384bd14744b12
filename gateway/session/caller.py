"""Who asks for a conversation."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.session.keys import KeyHolder
from gateway.telemetry.metrics import Api


@dataclass(frozen=True, slots=True)
class Caller:
    """The API that a request came over, and its key; None where no key is needed."""

    api: Api
    key: KeyHolder | None = None
