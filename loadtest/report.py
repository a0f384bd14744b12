"""Tables and pictures of a run, or of two: in the terminal, as HTML and as JSON.

python -m loadtest.report RUN               # writes RUN/result.json and RUN/report.html
python -m loadtest.report RUN OTHER --out FOLDER    # compares two runs
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import jinja2
import typer
from rich.console import Console
from rich.table import Table

from gateway.cli.console import result_console, run_command
from loadtest.machine import machine
from loadtest.result import Result
from loadtest.stats import LoadStats, Percentiles

PAGE, RESULT = "report.html", "result.json"

Rows = list[list[str]]
"""A table; the first row is its header."""


def write(result: Result, folder: Path) -> None:
    """Write result.json and report.html."""
    (folder / RESULT).write_text(json.dumps(result.to_json(), indent=1) + "\n")
    (folder / PAGE).write_text(_page({"": result}, [*tables(result)]))


def write_comparison(runs: Mapping[str, Result], folder: Path) -> None:
    """Write comparison.json and report.html of two runs by name."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {name: run.to_json() for name, run in runs.items()}
    (folder / "comparison.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / PAGE).write_text(_page(runs, [comparison(runs)]))


def record(result: Result, setup: str, file: Path) -> None:
    """Write `file`.json and `file`.md: the statistics, the machine, and `setup`, what was loaded."""
    content = {"setup": setup, "machine": machine(), **result.to_json()}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")
    shown = io.StringIO()
    show(result, result_console(shown))
    others = result.usage.others / result.usage.seconds if result.usage else 0.0
    notes = {"setup": setup, **machine(), "CPU used by other processes meanwhile": f"{others:.2f} cores"}
    lines = [f"* {name}: {value}" for name, value in notes.items()]
    file.with_suffix(".md").write_text("\n".join([*lines, "", "```", shown.getvalue().rstrip(), "```"]) + "\n")


def show(result: Result, console: Console) -> None:
    """Print the tables and the verdict."""
    for rows in tables(result):
        table = Table(*rows[0], box=None, pad_edge=False)
        for column in table.columns[1:]:
            column.justify = "right"
        for row in rows[1:]:
            table.add_row(*row)
        console.print(table)
        console.print()
    console.print(verdict(result))


def verdict(result: Result) -> str:
    """ "passed", or why the run did not pass."""
    lines = result.faults() or ["passed"]
    if result.slow_client:
        lines.append("the client was too slow: the result describes the client more than the server")
    return "\n".join(lines)


def tables(result: Result) -> list[Rows]:
    """Times by API, then counts, then CPU."""
    times: Rows = [["ms", "p50", "p95", "p99", "max"]]
    for api, stats in result.stats.items():
        for name, percentiles in _times(stats).items():
            if percentiles is not None:
                numbers = (percentiles.p50, percentiles.p95, percentiles.p99, percentiles.max)
                times.append([f"{api.value} {name}", *(f"{number:.1f}" for number in numbers)])
    by_api = [_counts(stats) for stats in result.stats.values()]
    counts = [["", *(api.value for api in result.stats)]]
    counts += [[name, *(each[name] for each in by_api)] for name in (by_api[0] if by_api else ())]
    return [times, counts, *_cpu(result)]


def comparison(runs: Mapping[str, Result]) -> Rows:
    """All figures of two runs, side by side."""
    rows: Rows = [["", *runs, "change"]]
    apis = sorted({api for run in runs.values() for api in run.stats})
    for api in apis:
        stats = [run.stats.get(api) for run in runs.values()]
        times = [_times(each) if each else {} for each in stats]
        for name in dict.fromkeys(name for each in times for name in each):
            for percentile in ("p50", "p99"):
                values = [getattr(each.get(name), percentile, None) for each in times]
                if any(value is not None for value in values):
                    cells = ["" if value is None else f"{value:.1f}" for value in values]
                    rows.append([f"{api.value} {name}, {percentile}, ms", *cells, _change(values)])
        counts = [_counts(each) if each else {} for each in stats]
        for name in dict.fromkeys(name for each in counts for name in each):
            rows.append([f"{api.value} {name}", *(each.get(name, "") for each in counts), ""])
    return rows


def _change(values: list[float | None]) -> str:
    before, after = values
    return f"{after / before - 1:+.1%}" if before and after is not None else ""


def _times(stats: LoadStats) -> dict[str, Percentiles | None]:
    return {
        "frame latency": stats.latency,
        "time to first audio": stats.first_audio,
        "setup": stats.setup,
        "whole response": stats.answer,
        "lateness of the client": stats.lateness,
    }


def _counts(stats: LoadStats) -> dict[str, str]:
    return {
        "calls": str(stats.conversations),
        "refused": str(stats.refused),
        "failed": str(stats.failed),
        "frames expected": str(stats.expected),
        "missing": str(stats.missing),
        "of these never sent": str(stats.unsent),
        "late (over 80 ms)": f"{stats.late} ({stats.late_share:.3%})",
        "underruns over 100 ms": str(stats.underruns),
        "dropped by the server": str(stats.dropped),
    }


def _cpu(result: Result) -> list[Rows]:
    per_frame = result.cpu_per_frame()
    rows: Rows = [["", "ms of CPU per frame", "share of a core"]]
    if per_frame is not None and result.usage is not None:
        shares = {"gateway": result.usage.gateway, "triton": result.usage.triton, "client": result.usage.client}
        for name, used in shares.items():
            rows.append([name, f"{per_frame[name]:.3f}", f"{used / result.usage.seconds:.1%}"])
    if result.batch is not None:
        rows.append(["mean temporal batch", f"{result.batch:.2f}", ""])
    return [rows] if len(rows) > 1 else []


_TEMPLATE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
body { font: 14px/1.45 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin-top: 2rem; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .15rem .8rem; text-align: right; }
td:first-child, th:first-child { text-align: left; padding-left: 0; } tr + tr td { border-top: 1px solid #e5e5e5; }
.passed { color: #2e8540; } .failed { color: #b3261e; } svg { max-width: 100%; height: auto; }
dl { display: grid; grid-template-columns: max-content auto; gap: .1rem 1rem; } dd { margin: 0; }
</style>
<h1>{{ title }}</h1>
{% for name, run in runs.items() %}
{% if name %}<h2>{{ name }}</h2>{% endif %}
<p class="{{ 'failed' if run.faults() else 'passed' }}">{% for line in verdict(run).splitlines() %}{{ line }}<br>
{% endfor %}</p>
<dl>{% for key, value in run.made.items() %}{% if value %}<dt>{{ key.replace('_', ' ') }}</dt><dd>{{ value }}</dd>
{% endif %}{% endfor %}</dl>
{% endfor %}
{% for title, picture in pictures.items() %}<h2>{{ title }}</h2>
{{ picture | safe }}
{% endfor %}
{% for rows in tables %}<table>
<tr>{% for cell in rows[0] %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in rows[1:] %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% endfor %}
</html>
"""


def _page(runs: Mapping[str, Result], rows: list[Rows]) -> str:
    # Matplotlib takes a second to import.
    from loadtest.pictures import pictures

    calls = sum(stats.conversations for run in runs.values() for stats in run.stats.values())
    title = f"Load test: {calls} calls" if len(runs) == 1 else f"Load tests: {' and '.join(runs)}"
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(_TEMPLATE)
    return page.render(title=title, runs=runs, pictures=pictures(runs), tables=rows, verdict=verdict)


def main(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    other: Annotated[Path | None, typer.Argument(help="Folder of another run, to compare it with.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the comparison. [default: OTHER/comparison]")] = None,
) -> None:
    """Write the report of a run, or of two side by side."""
    if other is None:
        write(Result.read(run), run)
    else:
        before, after = (folder.resolve().name for folder in (run, other))
        names = (before, after) if before != after else (str(run), str(other))
        target = out or other / "comparison"
        write_comparison(dict(zip(names, (Result.read(run), Result.read(other)), strict=True)), target)
        print(target / PAGE)


if __name__ == "__main__":
    run_command(main, "report")
