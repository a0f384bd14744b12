"""Fixtures of the CLI tests: run a command in this process or another, and a running service."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.cli import run
from gateway.cli.service import Service
from gateway.settings import Settings
from tests.gateway.leftovers import gone

__all__ = ["gone"]

ROOT = Path(__file__).parents[3]
QUESTION = ROOT / "tests" / "data" / "question.wav"
COMMAND = [sys.executable, "-m", "gateway.cli"]


@dataclass(frozen=True)
class Outcome:
    """The result of a command."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """Return the error line. Fails if there are more lines, or output besides it."""
        assert self.code == 2
        assert self.out == ""
        assert self.err.endswith("\n")
        assert self.err.count("\n") == 1
        assert self.err.startswith("personaplex: error: ")
        return self.err.removeprefix("personaplex: error: ").strip()


@pytest.fixture
def personaplex(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs a command in this process."""

    def call(*arguments: object) -> Outcome:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        return Outcome(code, *capfd.readouterr())

    return call


@contextmanager
def spawning(folder: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Yield a function that starts a command as a process in `folder`. Running ones are killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        )
        started.append(process)
        return process

    try:
        yield start
    finally:
        for process in started:
            process.kill()
            process.communicate()


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`spawning` in an empty folder."""
    with spawning(tmp_path) as start:
        yield start


@pytest.fixture(scope="session")
def service(tiny_models: Path) -> Iterator[Service]:
    """Triton and the gateway, serving the tiny models."""
    with Service(Settings(models=tiny_models, port=0, allow_voice_audio=True)) as service:
        yield service
        service.stop(now=True)


@pytest.fixture
def question() -> Path:
    return QUESTION
