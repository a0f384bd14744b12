from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model_repository.build import build_repository
from model_repository.errors import EvaluationError
from model_repository.evaluation.repository import Repository, check_same_checkpoint
from model_repository.synthetic.tiny import write_tiny_checkpoint
from tests.model_repository.evaluation.conftest import LAYERS

Pair = tuple[Repository, Repository]
Edited = Callable[..., Repository]


@pytest.fixture
def edited(pair: Pair, tmp_path: Path) -> Edited:
    """The first of the pair with an edited manifest."""

    def edit(change: Callable[[dict[str, Any]], object]) -> Repository:
        shutil.copytree(pair[0].folder, tmp_path / "edited", copy_function=shutil.copyfile)
        path = tmp_path / "edited" / "manifest.json"
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(manifest))
        return Repository.open(tmp_path / "edited")

    return edit


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="is not a built repository"):
        Repository.open(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(EvaluationError, match="is not a built repository"):
        Repository.open(tmp_path)


def test_what_is_missing_is_named(edited: Edited) -> None:
    with pytest.raises(EvaluationError, match=r"manifest\.json lacks dim"):
        edited(lambda manifest: manifest.pop("dim"))


def test_a_missing_model_is_named(pair: Pair, tmp_path: Path) -> None:
    shutil.copytree(pair[0].folder, tmp_path / "models")
    (tmp_path / "models" / "triton" / "depformer" / "1" / "model.onnx").unlink()
    with pytest.raises(EvaluationError, match=r"incomplete: .*depformer.* is missing"):
        Repository.open(tmp_path / "models")


def test_variants_of_a_checkpoint_are_the_same(pair: Pair, edited: Edited) -> None:
    check_same_checkpoint(pair[0], [pair[0], edited(lambda manifest: manifest.update(variant="int4", slots=1))])


def test_layers_are_counted(pair: Pair) -> None:
    assert pair[0].layers == LAYERS


def test_another_voice_is_another_checkpoint(pair: Pair, edited: Edited) -> None:
    other = edited(lambda manifest: manifest["voices"]["NATM1"].update(sha256="0" * 64))
    with pytest.raises(EvaluationError, match=r"another checkpoint.*voice NATM1 differs"):
        check_same_checkpoint(pair[0], [other])


def test_voices_only_one_of_them_has_are_no_difference(pair: Pair, edited: Edited) -> None:
    check_same_checkpoint(pair[0], [edited(lambda manifest: manifest["voices"].pop("NATM1"))])


def test_no_voice_in_common_is_refused(pair: Pair, edited: Edited) -> None:
    def rename(manifest: dict[str, Any]) -> None:
        manifest["voices"] = {f"other-{name}": voice for name, voice in manifest["voices"].items()}

    with pytest.raises(EvaluationError, match="no voice in common"):
        check_same_checkpoint(pair[0], [edited(rename)])


def test_another_tokenizer_is_another_checkpoint(pair: Pair, edited: Edited) -> None:
    other = edited(lambda manifest: manifest["files"]["tokenizer.model"].update(sha256="0" * 64))
    with pytest.raises(EvaluationError, match="tokenizer differs"):
        check_same_checkpoint(pair[0], [other])


def test_another_depth_is_another_checkpoint(pair: Pair, tiny_models: Path) -> None:
    with pytest.raises(EvaluationError, match=r"number of layers differs \(2 instead of 3\)"):
        check_same_checkpoint(pair[0], [Repository.open(tiny_models)])


def test_other_weights_are_another_checkpoint(pair: Pair, tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "checkpoint", seed=1, config={"lm": {"num_layers": LAYERS}})
    build_repository(tmp_path / "checkpoint", tmp_path / "models", slots=1)
    with pytest.raises(EvaluationError, match="voice NATF0 differs"):
        check_same_checkpoint(pair[0], [Repository.open(tmp_path / "models")])
