from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from model_repository.errors import EvaluationError
from model_repository.evaluation.conversation import Prompt
from model_repository.evaluation.evaluate import evaluate
from model_repository.evaluation.report import Report
from model_repository.evaluation.repository import Repository
from tests.model_repository.evaluation.conftest import CHANGED, FRAMES, LAYERS

Pair = tuple[Repository, Repository]


@pytest.fixture(scope="module")
def progress() -> list[tuple[str, float]]:
    """What was reported while `report` was made."""
    return []


@pytest.fixture(scope="module")
def report(pair: Pair, prompt: Prompt, frames: NDArray[np.float32], progress: list[tuple[str, float]]) -> Report:
    right, noisy = pair
    options: Any = {"layers": 4, "questions": 10, "progress": lambda *seen: progress.append(seen)}
    return evaluate([right, noisy], right, prompt, frames, **options)


def test_a_repository_is_exactly_like_itself(report: Report) -> None:
    for same in report.repositories[:2]:
        assert same.diverges_at is None
        assert same.quality.hidden_error == 0
        assert same.quality.hidden_cosine.min == pytest.approx(1, abs=1e-12)
        assert same.quality.text.agreement == same.quality.audio.agreement == 1
        assert same.quality.text.change == same.quality.audio.change == 0
        assert [layer.error for layer in same.quality.layers] == [0] * LAYERS


def test_an_error_shows_from_the_layer_on_that_has_it(report: Report) -> None:
    quality = report.repositories[2].quality
    errors = [layer.error for layer in quality.layers]
    assert errors[:CHANGED] == [0] * CHANGED
    assert all(0.001 < error < 0.2 for error in errors[CHANGED:])
    assert 0.9 < quality.hidden_cosine.mean < 1 - 1e-6
    assert quality.text.divergence > 0
    assert quality.audio.divergence > 0


def test_each_is_weighed_and_timed(report: Report) -> None:
    for repository in report.repositories:
        files = [path for path in Path(repository.models).rglob("*") if path.is_file()]
        assert repository.disk_bytes == sum(path.stat().st_size for path in files)
        assert 30e6 < repository.host_bytes < 1e9
        # Keys and values of 511 columns of 64 float32, and little else.
        caches = LAYERS * 2 * 511 * 64 * 4
        assert caches < repository.slot_bytes < 2 * caches
        assert repository.rtf == pytest.approx(repository.frame_ms / 80)
        assert 0 < sum(repository.stages_ms.values()) < 2 * repository.frame_ms_p95


def test_the_report_is_json(report: Report) -> None:
    told = json.loads(json.dumps(report.as_json()))
    assert told["format"] == 1
    assert told["parameters"]["frames"] == FRAMES
    assert told["parameters"]["layers_at"] == [0, 4, 7, 11]
    assert told["machine"]["cores"] == os.cpu_count()
    assert [repository["variant"] for repository in told["repositories"]] == ["fp32"] * 3
    assert told["repositories"][2]["quality"]["hidden_cosine"]["mean"] < 1


def test_without_an_evaluation_set_there_are_no_answers(report: Report) -> None:
    assert [repository.answers for repository in report.repositories] == [None] * 3


@pytest.mark.long
def test_memory_of_more_slots_is_counted(
    report: Report, pair: Pair, prompt: Prompt, frames: NDArray[np.float32]
) -> None:
    slots = 64
    wide = evaluate([pair[0]], pair[0], prompt, frames[:2], layers=0, slots=slots).repositories[0]
    one = report.repositories[0]
    assert wide.slot_bytes == one.slot_bytes
    assert wide.host_bytes - one.host_bytes == pytest.approx((slots - 1) * one.slot_bytes, rel=0.2)
    assert wide.quality.layers == []


def test_nothing_to_compare_is_refused(pair: Pair, prompt: Prompt, frames: NDArray[np.float32]) -> None:
    with pytest.raises(EvaluationError, match="nothing to compare"):
        evaluate([], pair[0], prompt, frames)
    with pytest.raises(EvaluationError, match="no frame"):
        evaluate([pair[1]], pair[0], prompt, frames[:0])


def test_a_device_that_is_not_there_is_told(
    pair: Pair, pair_for_cuda: Path, prompt: Prompt, frames: NDArray[np.float32]
) -> None:
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(EvaluationError, match="cuda: expected onnxruntime with CUDA, found one with"):
        evaluate([Repository.open(pair_for_cuda)], pair[0], prompt, frames[:1])


def test_progress_grows_to_the_end(report: Report, progress: list[tuple[str, float]]) -> None:
    fractions = [done for _, done in progress]
    assert fractions == sorted(fractions)
    assert progress[-1] == ("done", 1.0)
    assert {what for what, _ in progress} >= {"right-models: conversation", "noisy-models: comparison"}
