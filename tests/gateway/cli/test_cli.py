from __future__ import annotations

import os
import shlex
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.main import get_command

from gateway.cli import app, build
from gateway.cli.examples import EXAMPLES
from tests.gateway.cli.conftest import COMMAND, ROOT, Outcome

Run = Callable[..., Outcome]


def test_the_version_is_the_project_s(personaplex: Run) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert personaplex("--version") == Outcome(0, f"personaplex {project['version']}\n", "")


def test_the_shell_completes_commands(tmp_path: Path) -> None:
    typed = {"_PERSONAPLEX_COMPLETE": "complete_bash", "COMP_WORDS": "personaplex do", "COMP_CWORD": "1"}
    done = subprocess.run(
        COMMAND, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), **typed}, capture_output=True, text=True
    )
    assert done.stdout.split() == ["download", "doctor"]


@pytest.mark.parametrize("command", EXAMPLES)
def test_help_groups_options_and_its_examples_are_valid(personaplex: Run, command: str) -> None:
    shown = personaplex(command, "--help").out
    for example in EXAMPLES[command]:
        assert shlex.split(example)[-1] in shown
        words = [word for word in shlex.split(example.split(" | ")[-2 if " | " in example else 0]) if "=" not in word]
        assert words[:2] == ["personaplex", command]
        get_command(app).commands[command].make_context(command, words[2:])


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


@pytest.mark.parametrize(
    ("command", "package"),
    [(("build", "checkpoint", "out"), "onnx"), (("voice", "add", "models", "ANA", "question.wav"), "onnxruntime")],
)
def test_a_missing_package_of_the_models_is_named(
    tmp_path: Path, tiny_models: Path, command: tuple[str, ...], package: str
) -> None:
    """The gateway alone does not need them."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules.update(onnx=None, onnxruntime=None)\n")
    (tmp_path / "models").symlink_to(tiny_models)
    (tmp_path / "question.wav").symlink_to(ROOT / "tests/data/question.wav")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run([*COMMAND, *command], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert f"the package {package} is missing: pip install" in Outcome(done.returncode, done.stdout, done.stderr).error


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
