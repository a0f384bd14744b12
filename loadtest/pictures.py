"""Pictures of one run or two, as SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from loadtest.record import FRAME_SECONDS
from loadtest.result import Result
from loadtest.series import Array, Series, by_calls

_COLOURS = ("#0b6e99", "#d1495b", "#2e8540", "#8a4fbf", "#b26a00", "#555555")
_DEADLINE = "#999999"
# Text stays text: the file is small, and the page can be searched.
_LOOK: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "lines.linewidth": 1.3,
    "svg.hashsalt": "personaplex",
}
# A cumulative distribution is drawn through so many of its points, more of them in the tail.
_SHARES = np.unique(np.concatenate([np.linspace(0, 0.99, 200), 1 - np.logspace(-2, -5, 120)]))

Runs = Mapping[str, Result]
"""Runs by name, at most two."""


def pictures(runs: Runs) -> dict[str, str]:
    """SVG elements by title. A picture is left out if there is nothing to draw."""
    series = {name: Series.of(run.records) for name, run in runs.items()}
    with rc_context(_LOOK):
        found = {
            "Frame latency, cumulative": _distribution(runs, "latencies", deadline=True),
            "Time to first audio, cumulative": _distribution(runs, "first_audio"),
            "Setup, cumulative": _distribution(runs, "setup"),
            "Over time": _over_time(series),
            "Late and missing frames against calls in progress": _against_calls(series),
        }
    return {title: svg for title, svg in found.items() if svg}


def _distribution(runs: Runs, field: str, deadline: bool = False) -> str:
    """Cumulative distributions in milliseconds: a colour per API, the first of two runs dashed.

    The axis of the shares widens towards 100 %.
    """
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    highest = 0.0
    apis = sorted({api for run in runs.values() for api in run.stats})
    for style, (name, run) in zip(("--", "-")[-len(runs) :], runs.items(), strict=True):
        for colour, api in zip(_COLOURS, apis, strict=False):
            values = np.array(
                [
                    value
                    for record in run.records
                    if record.api is api
                    for value in ([getattr(record, field)] if field != "latencies" else record.latencies)
                    if value is not None
                ]
            )
            if not len(values):
                continue
            shares = _SHARES[1 - 0.5 / len(values) >= _SHARES] if len(values) > 1 else np.array([0.0])
            milliseconds = np.append(np.quantile(values, shares), values.max()) * 1000
            # The largest value is drawn where it belongs among so many.
            heights = _nines(np.append(shares, 1 - 0.5 / len(values)))
            axes.plot(milliseconds, heights, color=colour, linestyle=style, label=f"{name} {api.value}".strip())
            highest = max(highest, heights[-1])
    if not highest:
        return ""
    if deadline:
        axes.axvline(FRAME_SECONDS * 1000, color=_DEADLINE, linewidth=1)
        axes.annotate("80 ms", (FRAME_SECONDS * 1000, 0.02), xycoords=("data", "axes fraction"), xytext=(3, 0),
                      textcoords="offset points", color="#666666")  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if str(value)[0] in "25" else ""))
    axes.set_xlabel("ms")
    ticks = [0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999]
    axes.set_yticks([float(_nines(np.array(tick))) for tick in ticks], [f"{tick:.5g}" for tick in ticks])
    axes.set_ylim(0, highest + 0.1)
    axes.set_ylabel("share of values below")
    figure.legend(frameon=False, loc="outside right upper")
    return _svg(figure)


def _nines(share: Array) -> Array:
    return np.asarray(-np.log10(1 - share))


def _over_time(series: Mapping[str, Series]) -> str:
    """Calls, latency, and late and missing frames by second."""
    if not any(each.expected.any() for each in series.values()):
        return ""
    figure = Figure(figsize=(8, 6.4), layout="constrained")
    calls, latency, bad = figure.subplots(3, 1, sharex=True)
    several = len(series) > 1
    for colour, (name, each) in zip(_COLOURS, series.items(), strict=False):
        seconds = np.arange(float(len(each.calls)))
        calls.plot(seconds, each.calls, color=colour, label=f"{name} calls in progress".strip())
        if each.refused.any():
            calls.plot(seconds, each.refused, color=colour, linestyle=":", label=f"{name} refused or failed".strip())
        for row, share, style in ((0, "p50", "--"), (2, "p99", "-")):
            latency.plot(seconds, each.latency[row], color=colour, linestyle=style, label=f"{name} {share}".strip())
        _stack(bad, name if several else "", seconds, each, colour, several)
    calls.set_ylabel("calls")
    calls.set_ylim(0, None)
    latency.set_ylabel("frame latency, ms")
    latency.axhline(FRAME_SECONDS * 1000, color=_DEADLINE, linewidth=1)
    latency.set_ylim(0, None)
    bad.set_ylabel("frames per second")
    bad.set_ylim(0, None)
    bad.set_xlabel("seconds")
    for axes in (calls, latency, bad):
        axes.legend(frameon=False, loc="upper left", ncols=4)
        # Room for the legend above the lines.
        axes.set_ylim(0, max(axes.get_ylim()[1] * 1.25, 1))
    return _svg(figure)


def _stack(axes: Axes, name: str, seconds: Array, series: Series, colour: str, several: bool) -> None:
    """Late and missing frames: stacked areas of one run, lines of two."""
    if several:
        axes.plot(seconds, series.late + series.missing, color=colour, label=f"{name} late or missing")
    else:
        parts = (series.late, series.missing)
        axes.stackplot(seconds, *parts, labels=("late", "missing"), colors=("#e0a030", "#d1495b"), step="mid")


def _against_calls(series: Mapping[str, Series]) -> str:
    """Share of late and missing frames by calls in progress: seconds as points, their mean as a line."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.subplots()
    drawn = False
    for colour, (name, each) in zip(_COLOURS, series.items(), strict=False):
        numbers, shares = by_calls(each)
        if not len(numbers):
            continue
        drawn = True
        axes.plot(each.calls, 100 * each.bad_share, ".", color=colour, alpha=0.4, markersize=4)
        axes.plot(numbers, 100 * shares, "o-", color=colour, markersize=3, label=name or "mean of these seconds")
    if not drawn:
        return ""
    axes.set_xlabel("calls in progress")
    axes.set_ylabel("late or missing, %")
    axes.set_xlim(0, None)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
    # Above the axes: points may be anywhere in them.
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=4)
    return _svg(figure)


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
