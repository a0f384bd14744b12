from __future__ import annotations

import io

import pytest
from rich.table import Table

from gateway.cli.console import result_console

PATH = f"/a path/{60 * 'longer than a line '}/[of a run]"


@pytest.mark.parametrize("columns", ["20", "200"])
def test_results_do_not_depend_on_the_width_of_the_terminal(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    shown = io.StringIO()
    console = result_console(shown)
    console.print(f"results in {PATH}")
    table = Table("models", "variant", *(f"p{percent}" for percent in range(50, 100, 5)), box=None, pad_edge=False)
    table.add_row("[a] b", "fp32", *10 * ["12345.6 ms"])
    console.print(table)
    line, _, row = shown.getvalue().splitlines()
    assert line == f"results in {PATH}"
    assert row.split() == ["[a]", "b", "fp32", *10 * ["12345.6", "ms"]]
