"""The tables of a run, for the terminal and as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from gateway.cli.console import result_console
from loadtest.bench.models.analysis import FAST, SessionStats, beside_fast_memory, bounds, floor, memory_rates
from loadtest.bench.models.bytes_read import STAGES, Reads

_SHOWN_OPERATORS = 6


@dataclass(frozen=True)
class Section:
    """One table."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables(stats: SessionStats) -> list[Section]:
    """One table per step of the benchmark, the bounds last."""
    reads = {stage: Reads(**sizes) for stage, sizes in stats.get("reads", {}).items()}
    made = [_general(stats)]
    if reads:
        made.append(_reads(reads))
    if "alone" in stats:
        made.append(_cases("Frames in one process, median ms", stats["alone"], reads))
    if "served" in stats:
        made.append(_cases("Frames through Triton, median ms", stats["served"]["cases"], reads))
        made.append(_beside_fast_memory(stats["served"]["cases"]))
        made.append(_begun(stats["served"]["begun"]))
    if "memory" in stats:
        made.append(_memory(stats["memory"]))
    if "operators" in stats:
        made.append(_operators(stats["operators"]))
    verdicts = [
        (
            bound.what,
            "–" if bound.found is None else f"{bound.found:.2f} {bound.unit}",
            f"{bound.most:g}",
            bound.verdict,
        )
        for bound in bounds(stats)
    ]
    return [*made, Section("Bounds", ("of", "found", "at most", ""), verdicts)]


def show(made: Sequence[Section]) -> None:
    """Print them."""
    console = result_console()
    for section in made:
        table = Table(*section.columns, title=section.title, title_justify="left")
        for row in section.rows:
            table.add_row(*row)
        console.print(table)


def markdown(made: Sequence[Section]) -> str:
    """All tables as one document."""
    parts = []
    for section in made:
        lines = [f"## {section.title}", "", _row(section.columns), _row(["---"] * len(section.columns))]
        parts.append("\n".join([*lines, *map(_row, section.rows)]))
    return "\n\n".join(parts) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _general(stats: SessionStats) -> Section:
    rows = [(name, str(value)) for name, value in stats["machine"].items()]
    rows.append(("models", f"{stats['size']}, weights {stats['variant']}, keys and values {stats['kv']}"))
    rows.append(("threads per model", str(stats["threads"])))
    if "checkpoint" in stats:
        checkpoint = stats["checkpoint"]
        rows.append(("checkpoint", f"{_gb(checkpoint['bytes'])} written in {checkpoint['seconds']:.0f} s"))
    if "build" in stats:
        build = stats["build"]
        built = f"{build['seconds']:.0f} s, peak memory {_gb(build['peak_bytes'])}, {_gb(build['bytes'])} on disk"
        rows.append(("build", built))
    return Section("Machine and models", ("", ""), rows)


def _reads(reads: dict[str, Reads]) -> Section:
    rows = [
        (stage, f"{size.weights / 1e6:.1f}", f"{size.column / 1e3:.1f}", str(size.window), f"{size.state / 1e3:.1f}")
        for stage, size in reads.items()
    ]
    columns = ("stage", "weights, MB", "column of keys and values, kB", "columns at most", "other state, kB")
    return Section("What a frame reads: weights once, the rest for each conversation", columns, rows)


def _cases(title: str, cases: Sequence[SessionStats], reads: dict[str, Reads]) -> Section:
    columns = (
        "conversations",
        "context",
        *STAGES,
        "frame",
        "least",
        "most",
        "GB",
        "GB/s",
        "floor",
        "ratio",
    )
    rows = []
    for case in cases:
        least = floor(case, reads)
        rates = memory_rates(case)
        numbers = [*(case["stages_ms"][stage] for stage in STAGES), case["frame_ms"], case["least_ms"], case["most_ms"]]
        rows.append(
            (
                str(case["rows"]),
                str(case["context"]),
                *(f"{number:.1f}" for number in numbers),
                f"{least.bytes / 1e9:.2f}",
                f"{statistics.median(rates):.0f} ({min(rates):.0f}–{max(rates):.0f})",
                f"{least.ms:.1f} ({least.range_ms[0]:.1f}–{least.range_ms[1]:.1f})",
                f"{case['frame_ms'] / least.ms:.2f}",
            )
        )
    return Section(title, columns, rows)


def _beside_fast_memory(cases: Sequence[SessionStats]) -> Section:
    """Groups of frames right before and right after which memory was fast, of those measured."""
    rows = []
    for case in cases:
        times = beside_fast_memory(case)
        stats = (f"{figure(times):.1f}" if times else "–" for figure in (statistics.median, min, max))
        rows.append((str(case["rows"]), str(case["context"]), f"{len(times)} of {len(case['groups'])}", *stats))
    title = f"Those through Triton where memory gave {FAST:g} GB/s or more before and after, ms"
    return Section(title, ("conversations", "context", "groups", "median", "least", "most"), rows)


def _begun(begun: Sequence[SessionStats]) -> Section:
    """What it takes to begin a conversation whose columns must be computed, and one whose columns are remembered."""
    alike: dict[tuple[int, int], list[float]] = {}
    for one in begun:
        alike.setdefault((one["columns"], one["computed"]), []).append(one["seconds"])
    rows = []
    for (columns, computed), seconds in alike.items():
        took = statistics.median(seconds)
        speed = f"{computed / took:.0f}" if computed > 1 else "–"
        rows.append((str(columns), str(computed), str(len(seconds)), f"{took:.3f}", speed))
    titles = ("columns", "computed", "conversations", "median s", "columns/s")
    return Section("Beginning a conversation through Triton", titles, rows)


def _memory(memory: SessionStats) -> Section:
    counted = {**memory["memory"]["processes"], "all": memory["memory"]}
    rows = [(name, *(_gb(held[kind]) for kind in ("rss", "pss", "anonymous"))) for name, held in counted.items()]
    rows.append(("remembered beginnings of calls, at most as much again", "", "", _gb(memory["remembered_at_most"])))
    columns = ("process", "resident", "shared pages counted once", "without pages of files")
    return Section(f"Memory of the server, {memory['slots']} slots, their windows full", columns, rows)


def _operators(operators: SessionStats) -> Section:
    rows = []
    for stage, totals in operators["stages"].items():
        shown = list(totals.items())[:_SHOWN_OPERATORS]
        rest = sum(total["ms"] for _, total in list(totals.items())[_SHOWN_OPERATORS:])
        parts = [f"{name} ×{total['nodes']} {total['ms']:.2f}" for name, total in shown]
        rows.append(
            (stage, f"{sum(total['ms'] for total in totals.values()):.1f}", ", ".join([*parts, f"rest {rest:.2f}"]))
        )
    title = f"Inside the graphs, ms: {operators['rows']} conversation(s), context {operators['context']}"
    return Section(title, ("stage", "sum", "operators"), rows)


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB"
