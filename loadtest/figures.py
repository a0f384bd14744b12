"""From callers' records to the figures of a run. The definitions are the package's; missing stays missing (None)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from loadtest.record import FRAME_SECONDS, Outcome, Record

UNDERRUN_SECONDS = 0.1
MOST_LATE = 0.001
SLOW_CLIENT_SECONDS = FRAME_SECONDS


@dataclass(frozen=True)
class Spread:
    """Percentiles of something in milliseconds."""

    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, seconds: Sequence[float | None]) -> Spread | None:
        """None if nothing was measured. What is None was not measured, and is not counted."""
        measured = [value for value in seconds if value is not None]
        if not measured:
            return None
        milliseconds = np.array(measured) * 1000
        p50, p95, p99, largest = (float(value) for value in np.percentile(milliseconds, [50, 95, 99, 100]))
        return cls(p50, p95, p99, largest)


@dataclass(frozen=True)
class Figures:
    """What a group of callers got.

    expected: frames all of them should have received, also those who were refused. received: in time; missing: the
    rest, of which `unsent` were never asked for by the client. late: received, but more than 80 ms after being asked
    for; late_share: of those expected. underruns: frames that came when playback had been without for 100 ms.
    """

    conversations: int
    completed: int
    refused: int
    failed: int
    expected: int
    received: int
    missing: int
    unsent: int
    late: int
    late_share: float
    underruns: int
    dropped: int
    latency: Spread | None
    setup: Spread | None
    first_audio: Spread | None
    answer: Spread | None
    lateness: Spread | None
    held_seconds: float

    @property
    def slow_client(self) -> bool:
        """Whether the client was too slow for the figures to be the server's."""
        return self.lateness is not None and self.lateness.p99 > SLOW_CLIENT_SECONDS * 1000

    @classmethod
    def of(cls, records: Sequence[Record]) -> Figures:
        """Over all of `records`, together."""
        latencies = [latency for record in records for latency in record.latencies]
        expected = sum(record.expected for record in records)
        received = sum(min(record.frames, record.expected) for record in records)
        late = sum(latency > FRAME_SECONDS for latency in latencies)
        return cls(
            conversations=len(records),
            completed=_count(records, Outcome.COMPLETED),
            refused=_count(records, Outcome.REFUSED),
            failed=_count(records, Outcome.FAILED),
            expected=expected,
            received=received,
            missing=expected - received,
            unsent=sum(record.expected - len(record.sent) for record in records if record.sent),
            late=late,
            late_share=late / expected if expected else 0.0,
            underruns=sum(underruns(record.came) for record in records),
            dropped=sum(record.dropped or 0 for record in records),
            latency=Spread.of(latencies),
            setup=Spread.of([record.setup for record in records]),
            first_audio=Spread.of([record.first_audio for record in records]),
            answer=Spread.of([record.total for record in records]),
            lateness=Spread.of([late for record in records for late in record.late]),
            held_seconds=sum(record.held for record in records),
        )

    def faults(self) -> list[str]:
        """Why the run did not pass, one line each; none if it did."""
        found = []
        if self.failed:
            found.append(f"{self.failed} of {self.conversations} conversations failed")
        if self.refused:
            found.append(f"{self.refused} of {self.conversations} conversations were refused")
        if self.missing:
            found.append(f"{self.missing} of {self.expected} frames are missing ({self.unsent} never sent)")
        if self.latency is not None and self.latency.p99 >= FRAME_SECONDS * 1000:
            found.append(f"frame latency: the 99th percentile is {self.latency.p99:.1f} ms, not below 80")
        if self.late_share >= MOST_LATE:
            found.append(f"{self.late} of {self.expected} frames are late: {self.late_share:.2%}, not below 0.1 %")
        return found

    def to_json(self) -> dict[str, Any]:
        """For programs; milliseconds, except `held_seconds`."""
        return asdict(self) | {"slow_client": self.slow_client}


def expected_frames(seconds: float) -> int:
    """Whole frames in so many seconds."""
    # A little over, so that 0.24 s, which is 2.9999999999999996 frames in binary, has three.
    return int(seconds / FRAME_SECONDS + 1e-6)


def underruns(came: Sequence[float]) -> int:
    """Frames that came more than 100 ms after playback wanted them; it began when the first one came."""
    if not came:
        return 0
    due = came[0] + FRAME_SECONDS * np.arange(len(came))
    return int(np.count_nonzero(np.array(came) - due > UNDERRUN_SECONDS))


def _count(records: Sequence[Record], outcome: Outcome) -> int:
    return sum(record.outcome is outcome for record in records)
