"""A session as an operator sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import time
from typing import Literal

from gateway.telemetry.metrics import Api


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """`voice`: name of a preset, or `voice_audio`. `began`: Unix time in seconds."""

    id: str
    kind: Literal["live", "turn", "recorded"]
    api: Api
    voice: str
    began: float = field(default_factory=time)
