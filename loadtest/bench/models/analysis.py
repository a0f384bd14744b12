"""Bandwidth floors and ratios of every case of a run, and whether the bounds are met."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.bench.models.bytes_read import STAGES, Reads

SessionStats = Mapping[str, Any]
"""Of a run: `reads` by stage; cases of frames under `alone` and `served`; `build`, `memory`, `contexts` and so on."""


FAST = 47.0
"""GB/s: memory of the two-core server that the bounds are meant for gives 47 at its slowest, 82 at its fastest."""


@dataclass(frozen=True)
class Floor:
    """What reading a frame's bytes would take, in milliseconds, at the rate of memory around its case's groups.

    ms: at the median rate. range_ms: at the fastest and at the slowest. stages_ms: parts of `ms`.
    """

    bytes: int
    ms: float
    range_ms: tuple[float, float]
    stages_ms: Mapping[str, float]


def floor(case: SessionStats, reads: Mapping[str, Reads]) -> Floor:
    """Of one case, with as many threads as the rate was measured with."""
    rates = memory_rates(case)
    sizes = {stage: reads[stage].frame(case["rows"], case["context"]) for stage in STAGES}
    whole, middle = sum(sizes.values()), statistics.median(rates)
    return Floor(
        bytes=whole,
        ms=whole / middle / 1e6,
        range_ms=(whole / max(rates) / 1e6, whole / min(rates) / 1e6),
        stages_ms={stage: size / middle / 1e6 for stage, size in sizes.items()},
    )


def memory_rates(case: SessionStats) -> list[float]:
    """GB/s before and after each group of a case."""
    return [rate for group in case["groups"] for rate in group["gb_per_second"]]


def beside_fast_memory(case: SessionStats) -> list[float]:
    """Milliseconds a frame took in each group right before and right after which memory gave FAST or more."""
    return [group["frame_ms"] for group in case["groups"] if min(group["gb_per_second"]) >= FAST]


@dataclass(frozen=True)
class Bound:
    """A required maximum. found: None if it was not measured."""

    what: str
    found: float | None
    most: float
    unit: str

    @property
    def verdict(self) -> str:
        if self.found is None:
            return "not measured"
        return "met" if self.found <= self.most else "not met"


def bounds(stats: SessionStats) -> list[Bound]:
    """The bounds for an int4 model on a two-core server, as far as this run measured them."""
    low, middle, high = stats["contexts"][0], stats["served_contexts"][-1], stats["contexts"][-1]
    reads = {stage: Reads(**sizes) for stage, sizes in stats.get("reads", {}).items()}
    served, alone = stats.get("served", {}).get("cases", []), stats.get("alone", [])
    one, eight = _case(served, 1, middle), _case(served, 8, middle)
    mimi = _case(alone, 1, middle) or next((case for case in alone if case["rows"] == 1), None)
    fast_one, fast_eight = _fast(one), _fast(eight)
    memory = stats["memory"]["memory"] if "memory" in stats else None
    return [
        Bound(f"served, 1 conversation, context {middle}: frame", _frame(one), 150, "ms"),
        Bound("the same over its bandwidth floor", _over_floor(one, reads), 2, "×"),
        Bound("served, 8 conversations over 1", _ratio(eight, one), 2.5, "×"),
        Bound(f"the frame where memory gave {FAST:g} GB/s or more", _frame(fast_one), 150, "ms"),
        Bound("8 conversations over 1 there", _ratio(fast_eight, fast_one), 2.5, "×"),
        Bound(f"context {high} over {low}, alone", _ratio(_case(alone, 1, high), _case(alone, 1, low)), 1.4, "×"),
        Bound(
            "Mimi encode + decode, alone", mimi and sum(mimi["stages_ms"][s] for s in ("encode", "decode")), 30, "ms"
        ),
        Bound("build: peak memory", _gigabytes(stats.get("build"), "peak_bytes"), 4, "GB"),
        Bound("served, 2 slots with full windows: memory", _gigabytes(memory, "pss"), 7, "GB"),
    ]


def _case(cases: Sequence[SessionStats], rows: int, context: int) -> SessionStats | None:
    return next((case for case in cases if case["rows"] == rows and case["context"] == context), None)


def _frame(case: SessionStats | None) -> float | None:
    return None if case is None else float(case["frame_ms"])


def _ratio(case: SessionStats | None, base: SessionStats | None) -> float | None:
    return None if case is None or base is None else float(case["frame_ms"] / base["frame_ms"])


def _over_floor(case: SessionStats | None, reads: Mapping[str, Reads]) -> float | None:
    return None if case is None else float(case["frame_ms"] / floor(case, reads).ms)


def _fast(case: SessionStats | None) -> SessionStats | None:
    """The case restricted to groups with fast memory; None without such groups."""
    times = beside_fast_memory(case) if case else []
    return {"frame_ms": statistics.median(times)} if times else None


def _gigabytes(stats: SessionStats | None, key: str) -> float | None:
    return None if stats is None else float(stats[key]) / 1e9
