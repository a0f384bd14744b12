"""A run's result for people: a table in the terminal, and the same at the top of Locust's page."""

from __future__ import annotations

import html
import io
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from loadtest.figures import Figures, Spread
from loadtest.run import Result


def write(result: Result, folder: Path) -> None:
    """result.json, and the figures into Locust's report.html."""
    (folder / "result.json").write_text(json.dumps(result.to_json(), indent=1) + "\n")
    page = result.page.read_text()
    result.page.write_text(page.replace("<body>", "<body>\n" + _section(result), 1))


def show(result: Result, console: Console) -> None:
    """To the terminal."""
    for table in tables(result):
        console.print(table)
        console.print()
    console.print(verdict(result), highlight=False)


def verdict(result: Result) -> str:
    """Whether it passed, and if not why."""
    lines = result.faults() or ["passed"]
    if result.slow_client:
        lines.append("the client was too slow: these figures say more about it than about the server")
    return "\n".join(lines)


def tables(result: Result) -> list[Table]:
    """Times by face, then what else was counted."""
    times = Table("ms", "p50", "p95", "p99", "max", box=None, pad_edge=False)
    counts = Table("", *(face.value for face in result.figures), box=None, pad_edge=False)
    for column in [*times.columns[1:], *counts.columns[1:]]:
        column.justify = "right"
    for face, figures in result.figures.items():
        for name, spread in _spreads(figures):
            if spread is not None:
                shown = (f"{value:.1f}" for value in (spread.p50, spread.p95, spread.p99, spread.max))
                times.add_row(f"{face.value} {name}", *shown)
    for name, values in zip(*_counts(result), strict=True):
        counts.add_row(name, *values)
    return [times, counts, *_machine(result)]


def _spreads(figures: Figures) -> list[tuple[str, Spread | None]]:
    return [
        ("frame latency", figures.latency),
        ("time to first audio", figures.first_audio),
        ("setup", figures.setup),
        ("whole answer", figures.answer),
        ("lateness of the client", figures.lateness),
    ]


def _counts(result: Result) -> tuple[list[str], list[list[str]]]:
    def row(of: Figures) -> dict[str, str]:
        return {
            "conversations": str(of.conversations),
            "refused": str(of.refused),
            "failed": str(of.failed),
            "frames expected": str(of.expected),
            "missing": str(of.missing),
            "of them never sent": str(of.unsent),
            "late (over 80 ms)": f"{of.late} ({of.late_share:.3%})",
            "underruns over 100 ms": str(of.underruns),
            "dropped by the server": str(of.dropped),
        }

    rows = [row(figures) for figures in result.figures.values()]
    names = list(rows[0]) if rows else []
    return names, [[each[name] for each in rows] for name in names]


def _machine(result: Result) -> list[Table]:
    per_frame = result.cpu_per_frame()
    table = Table("", "ms of CPU per frame", "share of a core", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    if per_frame is not None and result.usage is not None:
        shares = {"gateway": result.usage.gateway, "triton": result.usage.triton, "client": result.usage.client}
        for name, used in shares.items():
            table.add_row(name, f"{per_frame[name]:.3f}", f"{used / result.usage.seconds:.1%}")
    if result.batch is not None:
        table.add_row("mean temporal batch", f"{result.batch:.2f}", "")
    return [table] if table.row_count else []


def _section(result: Result) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    show(result, console)
    text = html.escape(console.export_text())
    title = f"{result.plan.users} callers, {html.escape(result.face)}, {result.plan.seconds:g} s"
    style = "font: 14px/1.4 monospace; padding: 1rem; margin: 0; background: #fff; color: #111"
    return f'<section style="{style}"><h1>{title}</h1><pre>{text}</pre></section>'
