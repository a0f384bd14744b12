"""The parameters of a run, as one line of JSON between its processes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from loadtest.record import FRAME_SECONDS, Api

Phases = Literal["spread", "together"]
"""Where in a frame users start: evenly spread over its 80 ms, or all at the same instant."""


@dataclass(frozen=True)
class Plan:
    """One run.

    server: URL of the HTTP port. grpc: HOST:PORT. recording: the file users send. seconds: how long they send.
    setup, drain: seconds for all to be admitted, and for the last frames to arrive. out: the file for the records.
    """

    server: str
    grpc: str
    recording: str
    out: str
    users: int
    seconds: float = 60.0
    phases: Phases = "spread"
    setup: float = 60.0
    drain: float = 2.0
    api_key: str = ""

    def offset(self, user: int) -> float:
        """Seconds after the common start at which `user` starts."""
        return FRAME_SECONDS * user / self.users if self.phases == "spread" else 0.0

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Plan:
        """The inverse of `to_json`."""
        return cls(**json.loads(line))

    @property
    def out_path(self) -> Path:
        return Path(self.out)


def shares(api: str, users: int) -> dict[Api, int]:
    """How many of `users` use each API. "mixed" divides them equally; the remainder goes to the live APIs."""
    if api != "mixed":
        return {Api(api): users}
    apis = list(Api)
    return {each: users // len(apis) + (i < users % len(apis)) for i, each in enumerate(apis)}
