"""A report: its figures by second, its pictures, and two runs side by side."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from loadtest.paths import ROOT
from loadtest.record import FRAME_SECONDS, Api, Outcome, Record
from loadtest.report import comparison
from loadtest.result import Result
from loadtest.series import Series, by_calls

EPOCH = 1_700_000_000.0


def call(begin: float, frames: int, latency: float = 0.02, received: int | None = None, api: Api = Api.GRPC) -> Record:
    """A call that begins `begin` seconds into the run, of which `received` frames come after `latency`."""
    got = frames if received is None else received
    sent = [u * FRAME_SECONDS for u in range(frames)]
    return Record(
        api, 0, frames, Outcome.COMPLETED, began=EPOCH + begin, setup=0.05, first_audio=0.1, frames=got,
        sent=sent, late=[0.001] * frames, received=[moment + latency for moment in sent[:got]],
    )  # fmt: skip


def refused(begin: float, frames: int) -> Record:
    return Record(Api.GRPC, 1, frames, Outcome.REFUSED, "full", EPOCH + begin)


RECORDS = [call(0, 50), call(2, 25, latency=0.1), call(2.5, 25, received=20), refused(1, 25)]


def test_series_count_calls_and_frames_in_the_second_in_which_they_are_due():
    series = Series.of(RECORDS)
    assert series.calls[:5] == pytest.approx([1, 1, 2.5, 3, 0.5])
    assert list(series.begun[:3]) == [1, 1, 2]
    assert (series.refused.sum(), series.refused[1]) == (1, 1)
    assert series.expected.sum() == 125
    assert series.late[2:4].sum() == series.late.sum() == 25
    # Of the refused call, and the last five of the one that ended early.
    assert series.missing[1:3].sum() == 25
    assert series.missing.sum() == 30
    assert series.latency[0, 0] == pytest.approx(20)
    assert series.latency[2, 3] == pytest.approx(100)
    assert np.isnan(series.latency[:, -1]).all()


def test_bad_frames_by_the_number_of_calls():
    numbers, shares = by_calls(Series.of([call(0, 50), call(2, 25), call(2, 25, latency=0.1)]))
    assert list(numbers) == [1, 3]
    assert shares[0] == 0
    assert shares[1] == pytest.approx(1 / 3, abs=0.02)


def result(records: list[Record]) -> Result:
    return Result({"server": "http://h:1"}, records)


def pictures(results: dict[str, Result]) -> dict[str, str]:
    """Import Matplotlib here: it takes half a second, in every worker's collection."""
    from loadtest.pictures import pictures

    return pictures(results)


def test_pictures_are_svg_and_name_what_they_show():
    one = pictures({"": result(RECORDS)})
    assert len(one) == 5
    for svg in one.values():
        assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert "80 ms" in one["Frame latency, cumulative"]
    assert "calls in progress" in one["Over time"]
    two = pictures({"before": result(RECORDS), "after": result([call(0, 50, api=Api.LIVE)])})
    for title, svg in two.items():
        for name in ("before", "after"):
            assert name in svg, title


@pytest.mark.parametrize("names", [("",), ("before", "after")])
def test_lines_of_distributions_are_told_apart(names: tuple[str, ...]):
    drawn = pictures({name: result([call(0, 50, api=api) for api in Api]) for name in names})
    for title, svg in drawn.items():
        if "cumulative" in title:
            (legend,) = (group for group in ElementTree.fromstring(svg).iter() if group.get("id") == "legend_1")
            styles = [style for each in legend.iter() if "stroke" in (style := each.get("style", ""))]
            assert len(set(styles)) == len(styles) == len(names) * len(Api), title


def test_runs_without_a_call_have_no_pictures():
    assert pictures({"": result([])}) == {}
    assert result([]).faults() == ["no call was made"]


def test_a_comparison_has_both_runs_and_the_change():
    rows = {row[0]: row[1:] for row in comparison({"a": result(RECORDS[:1]), "b": result([call(0, 50, 0.03)])})}
    assert rows[""] == ["a", "b", "change"]
    assert rows["grpc frame latency, p50, ms"] == ["20.0", "30.0", "+50.0%"]
    assert rows["grpc missing"] == ["0", "0", ""]


def report(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadtest.report", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


def test_the_command_reports_a_run_and_compares_two(tmp_path: Path):
    for name, records in (("first", RECORDS), ("second", RECORDS[:1])):
        run = {"server": "https://<h>:1", "records": [record.to_json() for record in records], "workers": []}
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps(run))
    assert report(tmp_path / "first").returncode == 0
    page = (tmp_path / "first" / "report.html").read_text()
    assert page.count("<svg") == 5
    assert "https://&lt;h&gt;:1" in page
    assert "1 of 4 conversations were refused" in page
    assert json.loads((tmp_path / "first" / "result.json").read_text())["stats"]["grpc"]["missing"] == 30
    done = report(tmp_path / "first", tmp_path / "second", "--out", tmp_path / "both")
    assert done.stdout.strip() == str(tmp_path / "both" / "report.html")
    assert set(json.loads((tmp_path / "both" / "comparison.json").read_text())) == {"first", "second"}


@pytest.mark.parametrize(
    "content",
    [
        None,
        *(pytest.param(each, marks=pytest.mark.long) for each in ("no JSON", "[]", '{"records": [{}], "workers": []}')),
    ],
)
def test_a_folder_without_a_run_is_an_error(tmp_path: Path, content: str | None):
    folder = tmp_path / f"longer than a line of a terminal{100 * '-'}[of a run]"
    folder.mkdir()
    if content is not None:
        (folder / "run.json").write_text(content)
    done = report(folder)
    assert done.returncode == 2
    assert str(folder / "run.json") in done.stderr
    assert "Traceback" not in done.stderr
