"""What a run is to do, in words that fit on one line between its processes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from loadtest.record import FRAME_SECONDS, Face

Phases = Literal["spread", "together"]
"""Where in a frame callers begin: evenly spread over its 80 ms, as people would, or all at the same instant, which
fills the server's batches as nothing in the world does."""


@dataclass(frozen=True)
class Plan:
    """One run.

    server: URL of the HTTP port. grpc: HOST:PORT. recording: what callers say. seconds: the fixed time they speak for.
    setup, drain: seconds for all to be admitted, and for the last answers to come. out: the file for the records.
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
        """Seconds after the common start at which caller `user` begins."""
        return FRAME_SECONDS * user / self.users if self.phases == "spread" else 0.0

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def of_json(cls, line: str) -> Plan:
        """The inverse of `to_json`."""
        return cls(**json.loads(line))

    @property
    def out_path(self) -> Path:
        return Path(self.out)


def shares(face: str, users: int) -> dict[Face, int]:
    """How many of `users` come through each face; "mixed" is as equal as it can be. The live ones get the odd ones."""
    if face != "mixed":
        return {Face(face): users}
    faces = list(Face)
    return {each: users // len(faces) + (i < users % len(faces)) for i, each in enumerate(faces)}
