"""Result of a run: what its calls recorded, and the statistics of it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from gateway.cli.console import CommandError
from loadtest.record import Api, Record
from loadtest.stats import LoadStats
from loadtest.usage import Usage

RUN_FILE = "run.json"
"""Written by the locustfile: how the run was made, and its records."""


@dataclass(frozen=True)
class Result:
    """made: how the run was made. usage: CPU time, and batch: mean temporal batch, if `loadtest.run` measured them."""

    made: dict[str, Any]
    records: list[Record]
    usage: Usage | None = None
    batch: float | None = None
    workers: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Result:
        """Read what the locustfile has written to `folder`. Raises CommandError."""
        try:
            run = json.loads((folder / RUN_FILE).read_text())
            records = [Record.from_json(record) for record in run.pop("records")]
            return cls(run, records, workers=run.pop("workers"))
        except OSError as error:
            raise CommandError(f"{folder / RUN_FILE}: cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CommandError(f"{folder / RUN_FILE}: not the records of a run: {error!r}") from None

    @cached_property
    def stats(self) -> dict[Api, LoadStats]:
        """Statistics by API."""
        apis = sorted({record.api for record in self.records})
        return {api: LoadStats.of([record for record in self.records if record.api is api]) for api in apis}

    @property
    def frames(self) -> int:
        """Agent frames received by all users."""
        return sum(stats.received for stats in self.stats.values())

    @property
    def slow_client(self) -> bool:
        return any(stats.slow_client for stats in self.stats.values())

    def faults(self) -> list[str]:
        """Why the run did not pass; empty if it passed."""
        if not self.records:
            return ["no call was made"]
        return [f"{api.value}: {fault}" for api, stats in self.stats.items() for fault in stats.faults()]

    def to_json(self) -> dict[str, Any]:
        """JSON content, without the records."""
        return {
            "run": self.made,
            "passed": not self.faults(),
            "faults": self.faults(),
            "slow_client": self.slow_client,
            "stats": {api.value: stats.to_json() for api, stats in self.stats.items()},
            "mean_temporal_batch": self.batch,
            "cpu_seconds": dict(self.usage.cpu) if self.usage else None,
            "cpu_ms_per_frame": self.cpu_per_frame(),
            "other_cpu_seconds": self.usage.others if self.usage else None,
            "cores": os.cpu_count(),
        }

    def cpu_per_frame(self) -> dict[str, float] | None:
        """Milliseconds of one core per agent frame."""
        if self.usage is None or not self.frames:
            return None
        used = {"gateway": self.usage.gateway, "triton": self.usage.triton, "client": self.usage.client}
        return {name: seconds * 1000 / self.frames for name, seconds in used.items()}
