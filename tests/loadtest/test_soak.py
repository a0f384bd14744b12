"""A short soak of the real service: everybody comes, some vanish, nothing stays."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.passers import FACES
from loadtest.run import MODELS

ROOT = Path(__file__).parents[2]
SECONDS = 20
USERS = 6


@pytest.fixture
def command(tiny_models: Path, tmp_path: Path) -> list[str]:
    options = {
        "--minutes": SECONDS / 60,
        "--users": USERS,
        "--longest": 2.0,
        "--every": 0.5,
        "--vanish": 0.4,
        "--models": tiny_models,
        "--folder": tmp_path,
    }
    words = [str(word) for option in options.items() for word in option]
    return [sys.executable, "-m", "loadtest.soak", *words]


@pytest.mark.long
def test_callers_of_every_face_come_and_go_and_leave_nothing(command: list[str], tmp_path: Path):
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.rstrip().endswith("passed")
    (path,) = tmp_path.glob("*/soak.json")
    told = json.loads(path.read_text())
    assert (told["passed"], told["faults"]) == (True, [])
    assert told["seconds"] >= SECONDS
    assert set(told["conversations"]) == set(FACES)
    for face, outcomes in told["conversations"].items():
        assert outcomes["completed"], face
        assert outcomes["failed"] == 0
        # Eight slots, six callers, and those who have just gone.
        assert outcomes["refused"] <= 2
    assert sum(outcomes["vanished"] for outcomes in told["conversations"].values()) > 5
    assert set(told["processes"]) == {"gateway", "triton", *MODELS}
    for name, seen in told["samples"].items():
        assert len(seen["rss"]) == len(seen["seconds"]) >= SECONDS, name
        assert min(seen["rss"]) > 10 * 2**20, name
    for name in ("gateway", *MODELS):
        assert name in ran.stdout


def test_a_server_that_does_not_start_is_told(command: list[str], tmp_path: Path):
    at = command.index("--models") + 1
    ran = subprocess.run(
        [*command[:at], str(tmp_path / "nothing"), *command[at + 1 :]],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ran.returncode == 2
    assert "the server ended while starting" in ran.stderr


@pytest.mark.parametrize("module", ["loadtest", "loadtest.soak"])
@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot be read: No such file or directory"), (b"noise", "expected a recording that libsndfile reads")],
)
def test_a_recording_that_is_none_is_told_before_anything_starts(
    tmp_path: Path, module: str, content: bytes | None, said: str
) -> None:
    recording = tmp_path / "hello.wav"
    if content is not None:
        recording.write_bytes(content)
    command = [sys.executable, "-m", module, "--recording", str(recording), "--folder", str(tmp_path / "results")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()
