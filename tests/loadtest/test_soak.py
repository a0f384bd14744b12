"""A short soak of the real service: users of every API, some of which disconnect without notice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.churn import APIS
from loadtest.paths import ROOT
from loadtest.run import MODELS

SECONDS = 20
USERS = 6


@pytest.fixture
def command(tiny_models: Path, tmp_path: Path) -> list[str]:
    options = {
        "--minutes": SECONDS / 60,
        "--users": USERS,
        "--longest": 2.0,
        "--every": 0.5,
        "--drop": 0.4,
        "--models": tiny_models,
        "--folder": tmp_path,
    }
    words = [str(word) for option in options.items() for word in option]
    return [sys.executable, "-m", "loadtest.soak", *words]


@pytest.mark.long
def test_conversations_over_every_api_leave_nothing(command: list[str], tmp_path: Path):
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.rstrip().endswith("passed")
    (path,) = tmp_path.glob("*/soak.json")
    found = json.loads(path.read_text())
    assert (found["passed"], found["faults"]) == (True, [])
    assert found["seconds"] >= SECONDS
    assert set(found["conversations"]) == set(APIS)
    for api, outcomes in found["conversations"].items():
        assert outcomes["completed"], api
        assert outcomes["failed"] == 0
        # Eight slots, six users, and slots that are not free again yet.
        assert outcomes["refused"] <= 2
    assert sum(outcomes["dropped"] for outcomes in found["conversations"].values()) > 5
    assert set(found["processes"]) == {"gateway", "triton", *MODELS}
    for name, seen in found["samples"].items():
        assert len(seen["rss"]) == len(seen["seconds"]) >= SECONDS, name
        assert min(seen["rss"]) > 10 * 2**20, name
    for name in ("gateway", *MODELS):
        assert name in ran.stdout


# The short form is the load test that finds no server.
@pytest.mark.long
def test_a_server_that_does_not_start_is_an_error(command: list[str], tmp_path: Path):
    at = command.index("--models") + 1
    ran = subprocess.run(
        [*command[:at], str(tmp_path / "nothing"), *command[at + 1 :]],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ran.returncode == 2
    assert "the server ended while starting" in ran.stderr


@pytest.mark.parametrize(
    ("module", "content", "message"),
    [
        ("loadtest", None, "cannot be read: No such file or directory"),
        ("loadtest.soak", b"noise", "expected a recording that libsndfile reads"),
    ],
)
def test_an_unusable_recording_is_an_error_before_anything_starts(
    tmp_path: Path, module: str, content: bytes | None, message: str
) -> None:
    recording = tmp_path / "hello.wav"
    if content is not None:
        recording.write_bytes(content)
    command = [sys.executable, "-m", module, "--recording", str(recording), "--folder", str(tmp_path / "results")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{module.rpartition('.')[2]}: error: {recording}: {message}")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "results").exists()
