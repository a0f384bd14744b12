"""`personaplex key`."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.cli import run
from gateway.session.keys import Keys
from gateway.telemetry.metrics import Metrics


def test_the_printed_key_opens_a_server_with_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "keys.json"
    assert run(["key", str(file), "acme", "--conversations", "3", "--per-minute", "60"]) == 0
    holder = Keys([], file, 0, 0, 5, Metrics(1)).check(capsys.readouterr().out.strip())
    assert holder is not None
    assert (holder.name, holder.conversations, holder.per_minute) == ("acme", 3, 60)


def test_a_name_that_is_none_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["key", str(tmp_path / "keys.json"), "not a name"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
