"""Floors and bounds are computed from what was measured."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from loadtest.bench.models.analysis import bounds, floor
from loadtest.bench.models.bytes_read import STAGES, Reads
from loadtest.bench.models.tables import markdown, tables

TEMPORAL = Reads(weights=4_000_000_000, column=250_000, state=0, window=2999, filled=True)
MIMI = Reads(weights=100_000_000, column=1_000, state=500, window=249, filled=False)
READS = {"encode": MIMI, "temporal": TEMPORAL, "depformer": Reads(900_000_000, 0, 0, 0, False), "decode": MIMI}


def _case(rows: int, context: int, ms: float, fast: float | None = None) -> dict[str, Any]:
    """Two groups beside slow memory and one where it became fast; with `fast` another beside fast memory."""
    groups = [(ms, (40.0, 40.0)), (ms, (40.0, 46.9)), (ms, (46.9, 60.0))] + ([(fast, (60.0, 60.0))] if fast else [])
    return {
        "rows": rows,
        "context": context,
        "frames": 5 * len(groups),
        "frame_ms": ms,
        "least_ms": ms,
        "most_ms": ms,
        "stages_ms": dict.fromkeys(STAGES, ms / 4),
        "groups": [{"frame_ms": frame, "gb_per_second": list(rates)} for frame, rates in groups],
    }


def _stats(**measured: Any) -> dict[str, Any]:
    return {
        "size": "7b",
        "variant": "int4",
        "kv": "int8",
        "threads": 2,
        "machine": {},
        "contexts": [100, 1500, 2999],
        "served_contexts": [1500],
        "reads": {stage: asdict(reads) for stage, reads in READS.items()},
        **measured,
    }


def test_a_ring_that_is_read_as_far_as_it_is_filled_costs_what_is_filled() -> None:
    assert TEMPORAL.frame(rows=2, context=1000) == 4_000_000_000 + 2 * 1000 * 250_000
    assert TEMPORAL.frame(rows=1, context=5000) == 4_000_000_000 + 2999 * 250_000


def test_a_ring_that_is_read_whole_costs_the_same_at_any_context() -> None:
    assert MIMI.frame(rows=3, context=1) == MIMI.frame(rows=3, context=5000) == 100_000_000 + 3 * (249_000 + 500)


def test_the_floor_is_all_bytes_at_the_median_rate_around_the_groups() -> None:
    found = floor(_case(1, 1000, 150.0), READS)
    assert found.bytes == 4_000_000_000 + 250_000_000 + 900_000_000 + 2 * (100_000_000 + 249_500)
    assert found.ms == pytest.approx(found.bytes / 43.45e9 * 1e3)
    assert found.range_ms == pytest.approx((found.bytes / 60e9 * 1e3, found.bytes / 40e9 * 1e3))
    assert sum(found.stages_ms.values()) == pytest.approx(found.ms)


def test_bounds_say_what_is_met_and_what_is_not() -> None:
    served = {"cases": [_case(1, 1500, 140.0, fast=100.0), _case(8, 1500, 420.0, fast=240.0)], "begun": []}
    alone = [_case(1, 100, 100.0), _case(1, 2999, 130.0)]
    found = bounds(
        _stats(
            served=served, alone=alone, build={"peak_bytes": 4_100_000_000}, memory={"memory": {"pss": 6_900_000_000}}
        )
    )
    assert [bound.verdict for bound in found] == [
        "met",
        "met",
        "not met",
        "met",
        "met",
        "met",
        "not met",
        "not met",
        "met",
    ]
    assert found[2].found == pytest.approx(3.0)
    assert found[3].found == pytest.approx(100.0)
    assert found[4].found == pytest.approx(2.4)
    assert found[6].found == pytest.approx(50.0)


def test_nothing_is_said_of_fast_memory_where_it_never_was() -> None:
    found = bounds(_stats(served={"cases": [_case(1, 1500, 140.0), _case(8, 1500, 420.0)], "begun": []}, alone=[]))
    assert [bound.verdict for bound in found[3:5]] == ["not measured", "not measured"]


def test_every_table_is_a_table_in_markdown() -> None:
    begun = [{"columns": 1500, "computed": 1500, "seconds": 30.0}, {"columns": 1500, "computed": 1, "seconds": 0.2}]
    text = markdown(tables(_stats(served={"cases": [_case(1, 1500, 140.0)], "begun": begun}, alone=[])))
    assert "| 1500 | 1500 | 1 | 30.000 | 50 |" in text
    for part in text.split("## ")[1:]:
        lines = [line for line in part.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1
