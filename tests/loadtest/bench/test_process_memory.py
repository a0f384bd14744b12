"""A command's memory is that of all its processes, at its worst moment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.bench.models.process_memory import run_measured

pytestmark = pytest.mark.long

BYTES = 150_000_000


def _run(code: str, folder: Path) -> int:
    with (folder / "log").open("w") as log:
        return run_measured([sys.executable, "-c", code], folder, log).peak_bytes


def test_memory_that_was_given_back_counts(tmp_path: Path) -> None:
    peak = _run(f"x = b'1' * {BYTES}; del x; import time; time.sleep(0.5)", tmp_path)
    assert BYTES < peak < 2 * BYTES


def test_the_caller_s_own_memory_does_not_count(tmp_path: Path) -> None:
    held = bytearray(b"1") * (3 * BYTES)
    assert 0 < _run("import time; time.sleep(0.5)", tmp_path) < BYTES
    assert len(held) == 3 * BYTES


def test_children_count_with_their_parent(tmp_path: Path) -> None:
    child = f"x = b'1' * {BYTES}; import time; time.sleep(1)"
    peak = _run(
        f"x = b'1' * {BYTES}; import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])", tmp_path
    )
    assert 2 * BYTES < peak < 3 * BYTES


def test_a_command_that_fails_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        _run("import sys; print('no'); sys.exit(3)", tmp_path)
    assert (tmp_path / "log").read_text() == "no\n"
