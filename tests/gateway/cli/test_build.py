from __future__ import annotations

import json
import os
import pty
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.manifest import Manifest
from tests.gateway.cli.conftest import COMMAND, ROOT, Outcome

Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from gateway.cli.build import write_random

    folder = tmp_path_factory.mktemp("built") / "checkpoint"
    write_random(folder)
    return folder


def test_the_same_seed_gives_the_same_checkpoint(personaplex: Run, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert personaplex("tiny", tmp_path / name, "--random", "--seed", seed).code == 0
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_without_random_the_checkpoint_is_the_speaking_one(personaplex: Run, tmp_path: Path) -> None:
    outcome = personaplex("tiny", tmp_path / "speaking")
    assert (outcome.code, outcome.out) == (0, "")
    assert "speaking" in outcome.err
    assert (tmp_path / "speaking" / "evaluation" / "questions.json").is_file()
    assert "--random" in personaplex("tiny", tmp_path / "seeded", "--seed", 1).error
    assert not (tmp_path / "seeded").exists()
    assert "--force" in personaplex("tiny", tmp_path / "speaking").error


def test_a_built_repository_can_be_served(personaplex: Run, checkpoint: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    outcome = personaplex("build", checkpoint, models, "--slots", 3)
    assert (outcome.code, outcome.out) == (0, "")
    assert f"personaplex serve {models}" in outcome.err
    # The status line and no progress bar: stderr is no terminal.
    assert outcome.err.count("\n") == 1
    assert "\x1b" not in outcome.err
    assert json.loads((models / "manifest.json").read_text())["slots"] == 3


def test_a_repository_can_be_built_for_cuda(personaplex: Run, checkpoint: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    given = ("--device", "cuda", "--variant", "fp16", "--slots", 2)
    assert personaplex("build", checkpoint, models, *given).code == 0
    manifest = Manifest.load(models)
    assert (manifest.device, manifest.variant, manifest.slots) == ("cuda", "fp16", 2)
    assert "KIND_GPU" in (models / "triton" / "temporal" / "config.pbtxt").read_text()
    assert (
        "'fp32'; expected one of fp16, int8" in personaplex("build", checkpoint, models, *given, "--kv", "fp32").error
    )


def test_a_folder_with_something_else_needs_force(personaplex: Run, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    assert "--force" in personaplex("build", checkpoint, tmp_path).error
    assert (tmp_path / "mine.txt").read_text() == "precious"
    assert personaplex("build", checkpoint, tmp_path, "--force").code == 0


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer_spm_32k_3.model"])
def test_a_file_the_checkpoint_lacks_is_named(personaplex: Run, checkpoint: Path, tmp_path: Path, missing: str) -> None:
    for path in checkpoint.iterdir():
        if path.name != missing:
            (tmp_path / path.name).symlink_to(path)
    models = tmp_path / "models"
    assert missing in personaplex("build", tmp_path, models).error
    assert not models.exists()


def test_an_unknown_variant_is_rejected(personaplex: Run, checkpoint: Path, tmp_path: Path) -> None:
    assert "fp7" in personaplex("build", checkpoint, tmp_path / "models", "--variant", "fp7").error


def test_a_read_only_output_folder_is_an_error(personaplex: Run, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in personaplex("build", checkpoint, tmp_path / "file" / "models").error


def test_a_terminal_shows_a_progress_bar(checkpoint: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    build = [*COMMAND, "build", str(checkpoint), str(tmp_path / "models")]
    process = subprocess.Popen(build, stdout=subprocess.PIPE, stderr=theirs, cwd=ROOT, env=env)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:  # the other end of a closed pseudo-terminal reads as an error
        pass
    out, _ = process.communicate()
    assert "━".encode() in shown
    assert b"%" in shown
    assert (process.returncode, out) == (0, b"")
