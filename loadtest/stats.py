"""Statistics of a run, from the users' records. The package docstring has the definitions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from loadtest.record import FRAME_SECONDS, Outcome, Record

UNDERRUN_SECONDS = 0.1
MAX_LATE_SHARE = 0.001
SLOW_CLIENT_SECONDS = FRAME_SECONDS


@dataclass(frozen=True)
class Percentiles:
    """Percentiles in milliseconds."""

    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, seconds: Sequence[float | None]) -> Percentiles | None:
        """Skip values that are None; None if no value remains."""
        measured = [value for value in seconds if value is not None]
        if not measured:
            return None
        milliseconds = np.array(measured) * 1000
        p50, p95, p99, largest = (float(value) for value in np.percentile(milliseconds, [50, 95, 99, 100]))
        return cls(p50, p95, p99, largest)


@dataclass(frozen=True)
class LoadStats:
    """What a group of users received.

    expected: frames that all of them should have received, refused users included. received: in time. missing: the
    others, of which `unsent` because the client did not send. late: received more than 80 ms after the user frame;
    late_share: of the expected frames. underruns: frames more than 100 ms behind playback. answer: whole REST
    responses. lateness: of the client. blocked_seconds: time in which transports did not accept data.
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
    latency: Percentiles | None
    setup: Percentiles | None
    first_audio: Percentiles | None
    answer: Percentiles | None
    lateness: Percentiles | None
    blocked_seconds: float

    @property
    def slow_client(self) -> bool:
        """Whether the client was too slow to measure the server."""
        return self.lateness is not None and self.lateness.p99 > SLOW_CLIENT_SECONDS * 1000

    @classmethod
    def of(cls, records: Sequence[Record]) -> LoadStats:
        """Statistics over all `records` together."""
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
            underruns=sum(underruns(record.received) for record in records),
            dropped=sum(record.dropped or 0 for record in records),
            latency=Percentiles.of(latencies),
            setup=Percentiles.of([record.setup for record in records]),
            first_audio=Percentiles.of([record.first_audio for record in records]),
            answer=Percentiles.of([record.total for record in records]),
            lateness=Percentiles.of([late for record in records for late in record.late]),
            blocked_seconds=sum(record.blocked for record in records),
        )

    def faults(self) -> list[str]:
        """Why the run did not pass, one line each; empty if it passed."""
        found = []
        if self.failed:
            found.append(f"{self.failed} of {self.conversations} conversations failed")
        if self.refused:
            found.append(f"{self.refused} of {self.conversations} conversations were refused")
        if self.missing:
            found.append(f"{self.missing} of {self.expected} frames are missing ({self.unsent} never sent)")
        if self.latency is not None and self.latency.p99 >= FRAME_SECONDS * 1000:
            found.append(f"frame latency: the 99th percentile is {self.latency.p99:.1f} ms, not below 80")
        if self.late_share >= MAX_LATE_SHARE:
            found.append(f"{self.late} of {self.expected} frames are late: {self.late_share:.2%}, not below 0.1 %")
        return found

    def to_json(self) -> dict[str, Any]:
        """JSON content; milliseconds, except `blocked_seconds`."""
        return asdict(self) | {"slow_client": self.slow_client}


def expected_frames(seconds: float) -> int:
    """Number of whole frames in `seconds`."""
    # The margin makes 0.24 s, 2.9999999999999996 frames in binary, three frames.
    return int(seconds / FRAME_SECONDS + 1e-6)


def underruns(received: Sequence[float]) -> int:
    """Frames received more than 100 ms after playback needs them; playback starts with the first frame."""
    if not received:
        return 0
    due = received[0] + FRAME_SECONDS * np.arange(len(received))
    return int(np.count_nonzero(np.array(received) - due > UNDERRUN_SECONDS))


def _count(records: Sequence[Record], outcome: Outcome) -> int:
    return sum(record.outcome is outcome for record in records)
