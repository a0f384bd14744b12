"""A run over time: users in calls, latencies, and late and missing frames, by second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadtest.record import FRAME_SECONDS, Outcome, Record

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """Arrays [seconds], float64, one value per second of the run. A frame belongs to the second in which it was due.

    calls: mean number of calls in progress. begun, refused: calls that began, and those that were refused or failed.
    expected, late, missing: frames. latency: [3, seconds], the 50th, 95th and 99th percentile in milliseconds, NaN
    where none was received.
    """

    calls: Array
    begun: Array
    refused: Array
    expected: Array
    late: Array
    missing: Array
    latency: Array

    @property
    def bad_share(self) -> Array:
        """Late and missing frames divided by expected ones; NaN where none was expected."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return (self.late + self.missing) / self.expected

    @classmethod
    def of(cls, records: Sequence[Record]) -> Series:
        """Of one run's records."""
        zero = min((record.began for record in records), default=0.0)
        begins = np.array([record.began - zero for record in records])
        ends = begins + FRAME_SECONDS * np.array([record.expected for record in records])
        seconds = int(np.ceil(ends.max(initial=0.0))) + 1

        def count(moments: Array) -> Array:
            return np.bincount(moments.astype(int), minlength=seconds)[:seconds].astype(np.float64)

        due, latencies, missing = [], [], []
        calls = np.zeros(seconds)
        for begin, end, record in zip(begins, ends, records, strict=True):
            moments = begin + FRAME_SECONDS * np.arange(record.expected)
            measured = np.array(record.latencies[: record.expected])
            due.append(moments[: len(measured)])
            latencies.append(measured)
            missing.append(moments[min(record.frames, record.expected) :])
            if record.setup is not None or record.first_audio is not None:
                edges = np.arange(seconds)
                calls += np.clip(end - edges, 0, 1) - np.clip(begin - edges, 0, 1)
        at = np.concatenate([*due, []])
        latency = np.concatenate([*latencies, []])
        gone = np.concatenate([*missing, []])
        lost = np.array([record.outcome in (Outcome.REFUSED, Outcome.FAILED) for record in records], bool)
        expected = np.concatenate(
            [begin + FRAME_SECONDS * np.arange(record.expected) for begin, record in zip(begins, records, strict=True)]
            or [np.zeros(0)]
        )
        return cls(
            calls=calls,
            begun=count(begins),
            refused=count(begins[lost]),
            expected=count(expected),
            late=count(at[latency > FRAME_SECONDS]),
            missing=count(gone),
            latency=_percentiles(at, latency * 1000, seconds),
        )


def _percentiles(at: Array, values: Array, seconds: int) -> Array:
    order = np.argsort(at, kind="stable")
    edges = np.searchsorted(at[order], np.arange(1, seconds))
    found = np.full((3, seconds), np.nan)
    for second, each in enumerate(np.split(values[order], edges)):
        if len(each):
            found[:, second] = np.percentile(each, [50, 95, 99])
    return found


def by_calls(series: Series) -> tuple[Array, Array]:
    """Numbers of calls in progress, rounded, and the share of late and missing frames in their seconds."""
    calls = np.round(series.calls)
    used = (series.expected > 0) & (calls > 0)
    numbers = np.unique(calls[used])
    bad = np.array([(series.late + series.missing)[used & (calls == number)].sum() for number in numbers])
    expected = np.array([series.expected[used & (calls == number)].sum() for number in numbers])
    return numbers, bad / expected
