"""Medians, ratios and verdicts of a comparison."""

from __future__ import annotations

import pytest

from loadtest.compare.measurements import Measured
from loadtest.compare.report import Comparison, Pair, PartName, markdown


def _comparison(name: PartName, *pairs: tuple[float, float]) -> Comparison:
    return Comparison(name, [Pair(Measured(base), Measured(this, {"p99_ms": 1.5})) for base, this in pairs])


def test_the_ratio_is_that_of_the_medians() -> None:
    found = _comparison(PartName.CPU, (1.0, 0.5), (2.0, 0.6), (9.0, 0.9))
    assert (found.base, found.this, found.ratio) == (2.0, 0.6, pytest.approx(0.3))


@pytest.mark.parametrize(
    ("name", "base", "this", "verdict"),
    [
        (PartName.CPU, 1.0, 0.55, "met"),
        (PartName.CPU, 1.0, 0.56, "not met"),
        (PartName.CAPACITY, 20.0, 26.0, "met"),
        (PartName.CAPACITY, 20.0, 25.0, "not met"),
        (PartName.CAPACITY, 0.0, 25.0, "no ratio"),
    ],
)
def test_a_bound_is_a_maximum_except_for_the_capacity(name: PartName, base: float, this: float, verdict: str) -> None:
    assert _comparison(name, (base, this)).verdict == verdict


def test_the_table_shows_medians_noise_and_every_pair() -> None:
    text = markdown([_comparison(PartName.OVERHEAD, (10.0, 8.0), (12.0, 9.0))], {"processor": "one core"})
    row = text.splitlines()[2]
    assert "| 11.00 ms | 8.50 ms | **0.77** (0.75–0.80) | ≤ 0.85 | met | 10.00 → 8.00, 12.00 → 9.00 |" in row
    assert "* processor: one core" in text


def test_the_json_has_the_details_of_every_run() -> None:
    (pair,) = _comparison(PartName.CPU, (1.0, 0.5)).to_json()["pairs"]
    assert (pair["base"], pair["this"], pair["ratio"]) == (1.0, 0.5, 0.5)
    assert pair["details"]["this"]["detail"] == {"p99_ms": 1.5}
