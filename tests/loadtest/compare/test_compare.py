"""The whole comparison, of this tree with its own commit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.compare.source_tree import SourceTree, worktree
from loadtest.paths import ROOT
from loadtest.server import NoServer

NATIVE = "model_repository/serving/native"


def test_the_base_is_a_temporary_worktree_with_kernels() -> None:
    with worktree("HEAD") as base:
        assert base.commit == SourceTree.of("this", ROOT).commit.rstrip("+")
        assert (base.path / "gateway" / "cli").is_dir()
        kernels = {file.name for file in (ROOT / NATIVE).glob("*.so")}
        assert {file.name for file in (base.path / NATIVE).glob("*.so")} == kernels
    assert not base.path.exists()
    listed = subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert str(base.path) not in listed


def test_an_unknown_commit_is_an_error() -> None:
    with pytest.raises(NoServer, match="git worktree"), worktree("no-such-commit"):
        pass


@pytest.mark.long
@pytest.mark.timeout(600)
def test_every_part_is_measured_and_written(tmp_path: Path) -> None:
    short = ["--users", "2", "--cpu-seconds", "1", "--first-users", "2", "--limit", "2", "--step", "2"]
    short += ["--probe-seconds", "1", "--hold-seconds", "1", "--tries", "1"]
    short += ["--overhead-rounds", "1", "--recording-rounds", "1"]
    folders = ["--folder", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    command = [sys.executable, "-m", "loadtest.compare", "--base", "HEAD", "--pairs", "1", *short, *folders]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "results").glob("*.json")
    parts = json.loads(file.read_text())["parts"]
    assert set(parts) == {"cpu", "capacity", "overhead", "recordings"}
    for name in ("cpu", "overhead", "recordings"):
        assert parts[name]["base"] > 0
        assert parts[name]["this"] > 0
    assert parts["capacity"]["pairs"][0]["details"]["this"]["detail"]["runs"][0]["users"] == 2
    assert file.with_suffix(".md").is_file()
