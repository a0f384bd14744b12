"""The result of a comparison as JSON and as a Markdown table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from loadtest.compare.measurements import Measured


@dataclass(frozen=True)
class Part:
    """What is measured. bound: required ratio of this tree to the base, at most (or at least, if higher is better)."""

    title: str
    unit: str
    bound: float
    higher_is_better: bool = False
    digits: int = 2

    def met(self, ratio: float) -> bool:
        """Whether `ratio` meets the bound."""
        return ratio >= self.bound if self.higher_is_better else ratio <= self.bound


class PartName(StrEnum):
    """What can be measured."""

    CPU = "cpu"
    CAPACITY = "capacity"
    OVERHEAD = "overhead"
    RECORDINGS = "recordings"


PARTS = {
    PartName.CPU: Part("gateway CPU per live gRPC frame", "ms", 0.55, digits=3),
    PartName.CAPACITY: Part("live gRPC users that hold", "users", 1.3, higher_is_better=True, digits=0),
    PartName.OVERHEAD: Part("added by gateway and Triton, one user", "ms", 0.85),
    PartName.RECORDINGS: Part("eight recordings at once", "s", 1.0),
}


@dataclass(frozen=True)
class Pair:
    """One measurement of each tree."""

    base: Measured
    this: Measured

    @property
    def ratio(self) -> float | None:
        """This tree's value over the base's; None if the base's is 0."""
        return self.this.value / self.base.value if self.base.value else None


@dataclass(frozen=True)
class Comparison:
    """All pairs of one part."""

    name: PartName
    pairs: Sequence[Pair]

    @property
    def part(self) -> Part:
        return PARTS[self.name]

    @property
    def base(self) -> float:
        return statistics.median(pair.base.value for pair in self.pairs)

    @property
    def this(self) -> float:
        return statistics.median(pair.this.value for pair in self.pairs)

    @property
    def ratio(self) -> float | None:
        """Of the medians; None if the base's is 0."""
        return self.this / self.base if self.base else None

    @property
    def verdict(self) -> str:
        if self.ratio is None:
            return "no ratio"
        return "met" if self.part.met(self.ratio) else "not met"

    def to_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        return {
            "title": self.part.title,
            "unit": self.part.unit,
            "base": self.base,
            "this": self.this,
            "ratio": self.ratio,
            "bound": self.part.bound,
            "bound_is": "at least" if self.part.higher_is_better else "at most",
            "verdict": self.verdict,
            "pairs": [
                {"base": pair.base.value, "this": pair.this.value, "ratio": pair.ratio, "details": asdict(pair)}
                for pair in self.pairs
            ],
        }


def markdown(comparisons: Sequence[Comparison], about: dict[str, str]) -> str:
    """A table of medians and ratios, one of all pairs, and what was measured where."""
    lines = [
        "| | base | this | ratio | required | | pairs: base → this |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in comparisons:
        part = each.part
        values = " ".join(f"{_number(value, part)} {part.unit} |" for value in (each.base, each.this))
        pairs = ", ".join(f"{_number(pair.base.value, part)} → {_number(pair.this.value, part)}" for pair in each.pairs)
        sign = "≥" if part.higher_is_better else "≤"
        lines.append(f"| {part.title} | {values} {_ratio(each)} | {sign} {part.bound} | {each.verdict} | {pairs} |")
    notes = [f"* {name}: {value}" for name, value in about.items()]
    return "\n".join([*lines, "", *notes]) + "\n"


def _ratio(comparison: Comparison) -> str:
    """The ratio of the medians, and the range of the single pairs' ratios."""
    ratios = [pair.ratio for pair in comparison.pairs if pair.ratio is not None]
    if comparison.ratio is None or not ratios:
        return "–"
    return f"**{comparison.ratio:.2f}** ({min(ratios):.2f}–{max(ratios):.2f})"


def _number(value: float, part: Part) -> str:
    return f"{value:.{part.digits}f}"
