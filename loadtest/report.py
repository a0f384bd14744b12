"""Tables of a run's result, for the terminal and for the top of Locust's report."""

from __future__ import annotations

import html
import io
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from loadtest.machine import machine
from loadtest.run import Result
from loadtest.stats import LoadStats, Percentiles


def write(result: Result, folder: Path) -> None:
    """Write result.json and add the tables to Locust's report.html."""
    (folder / "result.json").write_text(json.dumps(result.to_json(), indent=1) + "\n")
    page = result.page.read_text()
    result.page.write_text(page.replace("<body>", "<body>\n" + _section(result), 1))


def record(result: Result, setup: str, file: Path) -> None:
    """Write `file`.json and `file`.md: the statistics, the machine, and `setup`, what was loaded."""
    content = {"setup": setup, "machine": machine(), **result.to_json()}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    console = Console(width=100, record=True, file=io.StringIO())
    show(result, console)
    others = result.usage.others / result.usage.seconds if result.usage else 0.0
    notes = {"setup": setup, **machine(), "CPU used by other processes meanwhile": f"{others:.2f} cores"}
    lines = [f"* {name}: {value}" for name, value in notes.items()]
    file.with_suffix(".md").write_text("\n".join([*lines, "", "```", console.export_text().rstrip(), "```"]) + "\n")


def show(result: Result, console: Console) -> None:
    """Print the tables and the verdict."""
    for table in tables(result):
        console.print(table)
        console.print()
    console.print(verdict(result), highlight=False)


def verdict(result: Result) -> str:
    """ "passed", or why the run did not pass."""
    lines = result.faults() or ["passed"]
    if result.slow_client:
        lines.append("the client was too slow: the result describes the client more than the server")
    return "\n".join(lines)


def tables(result: Result) -> list[Table]:
    """Times by API, then counts, then CPU."""
    times = Table("ms", "p50", "p95", "p99", "max", box=None, pad_edge=False)
    counts = Table("", *(api.value for api in result.stats), box=None, pad_edge=False)
    for column in [*times.columns[1:], *counts.columns[1:]]:
        column.justify = "right"
    for api, stats in result.stats.items():
        for name, percentiles in _times(stats):
            if percentiles is not None:
                numbers = (percentiles.p50, percentiles.p95, percentiles.p99, percentiles.max)
                times.add_row(f"{api.value} {name}", *(f"{number:.1f}" for number in numbers))
    for name, values in zip(*_counts(result), strict=True):
        counts.add_row(name, *values)
    return [times, counts, *_machine(result)]


def _times(stats: LoadStats) -> list[tuple[str, Percentiles | None]]:
    return [
        ("frame latency", stats.latency),
        ("time to first audio", stats.first_audio),
        ("setup", stats.setup),
        ("whole response", stats.answer),
        ("lateness of the client", stats.lateness),
    ]


def _counts(result: Result) -> tuple[list[str], list[list[str]]]:
    def row(of: LoadStats) -> dict[str, str]:
        return {
            "conversations": str(of.conversations),
            "refused": str(of.refused),
            "failed": str(of.failed),
            "frames expected": str(of.expected),
            "missing": str(of.missing),
            "of these never sent": str(of.unsent),
            "late (over 80 ms)": f"{of.late} ({of.late_share:.3%})",
            "underruns over 100 ms": str(of.underruns),
            "dropped by the server": str(of.dropped),
        }

    rows = [row(stats) for stats in result.stats.values()]
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
    title = f"{result.plan.users} users, {html.escape(result.api)}, {result.plan.seconds:g} s"
    style = "font: 14px/1.4 monospace; padding: 1rem; margin: 0; background: #fff; color: #111"
    return f'<section style="{style}"><h1>{title}</h1><pre>{text}</pre></section>'
