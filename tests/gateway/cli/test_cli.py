from __future__ import annotations

import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.cli import build
from tests.gateway.cli.conftest import COMMAND, ROOT, Outcome

Run = Callable[..., Outcome]


def test_the_version_is_the_project_s(personaplex: Run) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert personaplex("--version") == Outcome(0, f"personaplex {project['version']}\n", "")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["respond", "--help"]])
def test_help_is_a_result(personaplex: Run, arguments: list[str]) -> None:
    outcome = personaplex(*arguments)
    assert outcome.code == 0
    assert "Usage: personaplex" in outcome.out
    assert outcome.err == ""


@pytest.mark.parametrize(
    ("arguments", "error_text"),
    [
        (["sing"], "No such command 'sing'."),
        (["serve"], "Missing argument 'models'."),
        (["respond"], "Missing option '--input' / '-i'."),
        (["respond", "--shout"], "No such option: --shout"),
        (["serve", "x", "--port", "70000"], "Invalid value for '--port'"),
        (["build", "a", "b", "--slots", "many"], "Invalid value for '--slots'"),
    ],
)
def test_wrong_usage_is_one_line(personaplex: Run, arguments: list[str], error_text: str) -> None:
    assert error_text in personaplex(*arguments).error


def test_an_interrupt_ends_without_output(personaplex: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "write_tiny", interrupted)
    assert personaplex("tiny", "out") == Outcome(130, "", "")


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    help_ = subprocess.Popen([*COMMAND, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert help_.stdout is not None
    help_.stdout.close()
    assert help_.wait() in (0, 1)
    assert help_.stderr is not None
    assert help_.stderr.read() == b""
