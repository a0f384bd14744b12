"""`personaplex download`, run as a process with a local Hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import pytest

from model_repository.checkpoint.folder import Checkpoint
from tests.conftest import GOLDEN
from tests.model_repository.checkpoint.fake_hub import COMMIT, FakeHub, running
from tests.model_repository.checkpoint.test_download import CHECKPOINT, NEEDED, archive_of

Spawn = Callable[..., "Popen[str]"]


@pytest.fixture
def files() -> dict[str, bytes]:
    files = {name: (CHECKPOINT / name).read_bytes() for name in NEEDED - {"voices.tgz", "LICENSE"}}
    return files | {"voices.tgz": archive_of(NATF0=(GOLDEN / "checkpoint" / "voices" / "NATF0.pt").read_bytes())}


def test_download_prints_licence_commit_and_next_step(spawn: Spawn, files: dict[str, bytes], tmp_path: Path) -> None:
    with running(FakeHub(files)) as hub:
        process = spawn("download", tmp_path / "out", HF_ENDPOINT=hub.url, HF_TOKEN="", HF_HOME=str(tmp_path / "home"))
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    licence, commit, done = err.splitlines()
    assert "NVIDIA Open Model License" in licence
    assert commit == f"nvidia/personaplex-7b-v1 at commit {COMMIT}"
    assert done.endswith(f"1 voices; next: personaplex build {tmp_path / 'out'} MODELS")
    assert Checkpoint.open(tmp_path / "out").geometry == Checkpoint.open(CHECKPOINT).geometry


def test_a_closed_gate_is_one_line(spawn: Spawn, files: dict[str, bytes], tmp_path: Path) -> None:
    with running(FakeHub(files, gated=True)) as hub:
        process = spawn("download", tmp_path / "out", HF_ENDPOINT=hub.url, HF_TOKEN="", HF_HOME=str(tmp_path / "home"))
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err.splitlines()[-1].startswith("personaplex: error: nvidia/personaplex-7b-v1 is gated: accept the licence")
    assert "Traceback" not in err
