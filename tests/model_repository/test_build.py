"""What `build_repository` leaves on disk, and what it refuses to touch."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from model_repository import build
from model_repository.build import build_repository
from model_repository.checkpoint.folder import Checkpoint
from model_repository.checkpoint.voices.voice import Voice
from model_repository.errors import BuildError, CheckpointError
from model_repository.synthetic.tiny import write_tiny_checkpoint
from tests.conftest import GOLDEN

CHECKPOINT = GOLDEN / "checkpoint"


@pytest.fixture(scope="module")
def graphs_once() -> Callable[..., Mapping[str, Any]]:
    made: dict[object, Mapping[str, Any]] = {}

    def graphs_of(source: Checkpoint, variant: object, report: object) -> Mapping[str, Any]:
        key = (source.path, variant)
        if key not in made:
            made[key] = make(source, variant, report)
        return made[key]

    make = build.graphs_of
    return graphs_of


@pytest.fixture(autouse=True)
def _the_same_graphs(graphs_once: Callable[..., Mapping[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Declare the graphs of a checkpoint once: these tests are of what a build writes, and where."""
    monkeypatch.setattr(build, "graphs_of", graphs_once)


def test_a_repository_is_complete_and_its_manifest_says_what_is_in_it(golden_models: Path):
    manifest = json.loads((golden_models / "manifest.json").read_text())
    assert (manifest["slots"], manifest["variant"], manifest["context"], manifest["dim"]) == (8, "fp32", 56, 32)
    assert manifest["models"] == ["mimi_encoder", "temporal", "depformer", "mimi_decoder"]
    on_disk = {
        str(path.relative_to(golden_models))
        for path in golden_models.rglob("*")
        # A Triton that serves the repository compiles model.py where it lies.
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert set(manifest["files"]) == on_disk - {"manifest.json"}
    for name, file in manifest["files"].items():
        content = (golden_models / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file["bytes"], file["sha256"])
    voice = manifest["voices"]["NATF0"]
    assert Voice.load(golden_models / voice["file"]).frames == voice["frames"] == 13


def test_progress_names_the_work_and_reaches_the_end(tmp_path: Path):
    seen: list[tuple[str, float]] = []
    build_repository(CHECKPOINT, tmp_path / "models", progress=lambda what, done: seen.append((what, done)))
    fractions = [done for _, done in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert any(what.startswith("temporal: transformer.layers.1") for what, _ in seen)


@pytest.fixture
def earlier(golden_models: Path, tmp_path: Path) -> Path:
    """A repository that was built before, for 8 conversations."""
    return Path(shutil.copytree(golden_models, tmp_path / "models", ignore=shutil.ignore_patterns("__pycache__")))


def test_an_earlier_repository_is_replaced(earlier: Path, tmp_path: Path):
    build_repository(CHECKPOINT, tmp_path / "models", slots=3)
    assert json.loads((tmp_path / "models" / "manifest.json").read_text())["slots"] == 3
    assert "max_batch_size: 3" in (tmp_path / "models" / "triton" / "temporal" / "config.pbtxt").read_text()


def test_an_empty_folder_is_written_to(tmp_path: Path):
    (tmp_path / "models").mkdir()
    build_repository(CHECKPOINT, tmp_path / "models", slots=1)
    assert (tmp_path / "models" / "manifest.json").is_file()


def test_somebody_elses_folder_is_kept_unless_forced(tmp_path: Path):
    thesis = tmp_path / "models" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    with pytest.raises(BuildError, match="holds something else than a model repository; --force"):
        build_repository(CHECKPOINT, tmp_path / "models")
    assert thesis.read_text() == "years of work"
    build_repository(CHECKPOINT, tmp_path / "models", force=True)
    assert not thesis.exists()


def test_a_manifest_of_something_else_is_not_ours(tmp_path: Path):
    """Web applications have a manifest.json too."""
    site = tmp_path / "models" / "manifest.json"
    site.parent.mkdir()
    site.write_text('{"name": "My site", "icons": []}')
    with pytest.raises(BuildError, match="holds something else"):
        build_repository(CHECKPOINT, tmp_path / "models")


def test_a_file_in_the_way_is_named(tmp_path: Path):
    (tmp_path / "models").write_text("")
    with pytest.raises(BuildError, match="is a file"):
        build_repository(CHECKPOINT, tmp_path / "models", force=True)


def test_a_failed_build_leaves_the_earlier_repository_and_nothing_half_written(
    earlier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build, "_sha256", full)
    with pytest.raises(BuildError, match=r"cannot write .*No space left on device"):
        build_repository(CHECKPOINT, tmp_path / "models", slots=3)
    assert json.loads((earlier / "manifest.json").read_text())["slots"] == 8
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_a_missing_file_of_the_checkpoint_is_named(tmp_path: Path):
    shutil.copytree(CHECKPOINT, tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "tokenizer_spm_32k_3.model").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer_spm_32k_3\.model"):
        build_repository(tmp_path / "checkpoint", tmp_path / "models")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "fp64"}, "unknown variant 'fp64'; expected one of fp32, fp16, int8, int4, mixed"),
        ({"kv": "int2"}, "unknown precision of keys and values 'int2'; expected one of fp32, fp16, int8"),
        ({"slots": 0}, "slots must be from 1"),
    ],
)
def test_options_are_checked(tmp_path: Path, options, message):
    with pytest.raises(BuildError, match=message):
        build_repository(CHECKPOINT, tmp_path / "models", **options)


def test_added_voices_outlive_another_build_of_the_checkpoint(earlier: Path, tmp_path: Path):
    models = earlier
    (models / "voices" / "ANA.safetensors").write_bytes(b"added")
    (models / "voices" / "NATF0.safetensors").write_bytes(b"put in a built-in one's place")
    assert build_repository(CHECKPOINT, models, slots=1, variant="int8") == []
    assert (models / "voices" / "ANA.safetensors").read_bytes() == b"added"
    assert (models / "voices" / "NATF0.safetensors").read_bytes() == b"put in a built-in one's place"
    write_tiny_checkpoint(tmp_path / "other")
    assert build_repository(tmp_path / "other", models, slots=1) == ["ANA", "NATF0"]
    assert not (models / "voices" / "ANA.safetensors").exists()


@pytest.mark.parametrize("inside", [".", "checkpoint"])
@pytest.mark.parametrize("force", [False, True])
def test_the_checkpoint_is_never_replaced(tmp_path: Path, inside: str, force: bool):
    shutil.copytree(CHECKPOINT, tmp_path / "models" / inside, dirs_exist_ok=True)
    with pytest.raises(BuildError, match="holds the checkpoint; expected another folder"):
        build_repository(tmp_path / "models" / inside, tmp_path / "models", slots=1, force=force)
    assert (tmp_path / "models" / inside / "model.safetensors").is_file()


def test_where_a_link_leads_is_written_to(tmp_path: Path):
    (tmp_path / "disk" / "models").mkdir(parents=True)
    (tmp_path / "models").symlink_to(tmp_path / "disk" / "models")
    for slots in (1, 2):
        build_repository(CHECKPOINT, tmp_path / "models", slots=slots)
    assert (tmp_path / "models").is_symlink()
    assert json.loads((tmp_path / "disk" / "models" / "manifest.json").read_text())["slots"] == 2
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["models"]


def test_a_mounted_volume_is_refilled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    models = tmp_path / "models"
    models.mkdir()
    (models / "lost+found").mkdir()
    before = models.stat().st_ino
    monkeypatch.setattr(Path, "is_mount", lambda path: path == models)
    for slots in (1, 2):
        build_repository(CHECKPOINT, models, slots=slots)
    assert json.loads((models / "manifest.json").read_text())["slots"] == 2
    assert {path.name for path in models.iterdir()} == {
        "lost+found", "manifest.json", "tokenizer.model", "triton", "voices"
    }  # fmt: skip
    assert models.stat().st_ino == before


def test_a_place_that_cannot_be_taken_keeps_what_is_there(
    earlier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(BuildError, match="Input/output error"):
        build_repository(CHECKPOINT, earlier, slots=2)
    assert json.loads((earlier / "manifest.json").read_text())["slots"] == 8
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_others_may_read_what_was_built_as_far_as_the_umask_lets_them(tmp_path: Path):
    before = os.umask(0o022)
    try:
        build_repository(CHECKPOINT, tmp_path / "models", slots=1)
    finally:
        os.umask(before)
    for path in (tmp_path / "models", *(tmp_path / "models").rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path


def test_what_a_killed_build_left_is_removed(tmp_path: Path):
    left, busy, fresh, old = (tmp_path / f".models.building-{name}" for name in ("left", "busy", "fresh", "old"))
    for workshop in (left, busy, fresh, old):
        workshop.mkdir()
    (left / "lock").touch()
    # Open for writing, as network file systems demand of an exclusive lock.
    with (busy / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        os.utime(old, (0, 0))
        build_repository(CHECKPOINT, tmp_path / "models", slots=1)
        assert {path.name for path in tmp_path.iterdir()} == {"models", busy.name, fresh.name}
    os.utime(fresh, (0, 0))
    build_repository(CHECKPOINT, tmp_path / "models", slots=1)
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_a_build_is_not_abandoned_while_it_runs(tmp_path: Path):
    seen: list[str] = []

    def another(what: str, done: float) -> None:
        if done == 0.0:
            build_repository(CHECKPOINT, tmp_path / "models", slots=1)
            return
        seen.extend(path.name for path in tmp_path.glob(".models.building-*") if what == "voices")
        if what == "voices" and not (tmp_path / "models" / "second").exists():
            build_repository(CHECKPOINT, tmp_path / "models", slots=2)
            (tmp_path / "models" / "second").touch()

    build_repository(CHECKPOINT, tmp_path / "models", slots=3, progress=another, force=True)
    assert json.loads((tmp_path / "models" / "manifest.json").read_text())["slots"] == 3
    assert len(set(seen)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_a_build_killed_while_it_took_its_place_is_undone(earlier: Path, tmp_path: Path):
    (tmp_path / "models" / "voices" / "ANA.safetensors").write_bytes(b"added")
    killed = tmp_path / ".models.building-killed"
    killed.mkdir()
    (tmp_path / "models").rename(killed / "old")
    (killed / "lock").touch()
    build_repository(CHECKPOINT, tmp_path / "models", slots=1)
    assert (tmp_path / "models" / "voices" / "ANA.safetensors").read_bytes() == b"added"
