"""State is updated where it lies: no run copies or moves a buffer of it."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from model_repository.serving import session as session_module
from model_repository.serving.session import StatefulSession, row_ranges, warm_up, warm_up_sizes
from tests.conftest import GoldenVariant
from tests.model_repository.serving.conftest import Models, one, sampler


def states(session: StatefulSession) -> dict[str, np.ndarray]:
    return session._states


@pytest.mark.parametrize("columns", [1, 20])
def test_caches_are_written_in_place(golden_models: Path, capfd: pytest.CaptureFixture[str], columns):
    """Only the slots of the new columns change, in the array that was allocated at load.

    ONNX Runtime warns when it has to copy a cache because input and output are not the same memory.
    """
    models = Models(golden_models)
    session = models.temporal.session
    buffers = {name: (array, array.ctypes.data) for name, array in states(session).items()}
    assert len(buffers) == 4, "keys and values of two layers"
    inputs = {"columns": np.ones((columns, 17), np.int64), "embeddings": models.no_embeddings()}
    one(models.temporal, 3, {**inputs, **sampler(columns)}, start=True)
    for name, (array, address) in buffers.items():
        assert states(session)[name].ctypes.data == address
        written = np.argwhere(array.any(axis=(1, 3)))
        assert {(row, slot) for row, slot in written.tolist()} == {(3, slot) for slot in range(columns)}, name
    assert "in-place optimization not activated" not in capfd.readouterr().err


@pytest.mark.parametrize(("kv", "by_the_user", "seen"), [("int8", None, "1"), ("fp32", None, None), ("int8", "0", "0")])
def test_attention_over_an_8_bit_cache_is_not_in_blocks(
    golden_variant: GoldenVariant, monkeypatch: pytest.MonkeyPatch, kv, by_the_user, seen
):
    models = golden_variant(kv=kv)
    name = "ORT_GQA_DISABLE_FLASH_ATTENTION"
    monkeypatch.delenv(name, raising=False)
    if by_the_user is not None:
        monkeypatch.setenv(name, by_the_user)
    make, found = ort.InferenceSession, []

    def made(*args, **kwargs):
        found.append(os.environ.get(name))
        return make(*args, **kwargs)

    monkeypatch.setattr(ort, "InferenceSession", made)
    StatefulSession(models / "triton" / "temporal" / "1" / "model.onnx", 1)
    assert found == [seen]
    assert os.environ.get(name) == by_the_user


def test_the_warning_that_the_other_test_looks_for_exists(golden_models: Path, capfd: pytest.CaptureFixture[str]):
    models = Models(golden_models)
    session = models.temporal.session
    feeds = {name: array[:1] for name, array in (session.feeds | states(session)).items()}
    feeds["top_k"] = feeds["filled"] = np.ones(1, np.int64)
    session._session.run(None, {**feeds, "offsets": np.zeros(1, np.int64)})
    assert "in-place optimization not activated" in capfd.readouterr().err


def test_a_rows_first_columns_can_be_put_into_another_row(golden_models: Path):
    """All of its caches and nothing else: neither later columns nor other rows change."""
    session = Models(golden_models).temporal.session
    random = np.random.default_rng(1)
    for array in states(session).values():
        array[:] = random.standard_normal(array.shape)
    before = {name: array.copy() for name, array in states(session).items()}
    session.restore(5, session.save(2, 7))
    for name, array in states(session).items():
        expected = before[name].copy()
        expected[5, :, :7] = before[name][2, :, :7]
        np.testing.assert_array_equal(array, expected, err_msg=name)


def test_what_was_saved_does_not_follow_the_row(golden_models: Path):
    session = Models(golden_models).temporal.session
    saved = session.save(0, 3)
    for array in states(session).values():
        array[0] = 1
    assert not any(array.any() for array in saved.values())


def test_streaming_state_of_rows_that_rest_is_kept(golden_models: Path):
    models = Models(golden_models)
    random = np.random.default_rng(0)
    frames = random.standard_normal((3, 1920)).astype(np.float32)
    one(models.encoder, 2, {"pcm": frames[0]}, start=True)
    before = {name: array[2].copy() for name, array in states(models.encoder.session).items() if "state." in name}
    assert before
    one(models.encoder, 0, {"pcm": frames[1]}, start=True)
    one(models.encoder, 4, {"pcm": frames[2]}, start=True)
    for name, kept in before.items():
        np.testing.assert_array_equal(states(models.encoder.session)[name][2], kept)


def test_a_row_is_as_good_as_new_after_a_warm_up(golden_models: Path):
    cold, warm = Models(golden_models), Models(golden_models)
    warm.encoder.warm_up()
    warm.decoder.warm_up()
    warm.temporal.warm_up()
    warm.depformer.warm_up()
    frame = np.random.default_rng(3).standard_normal(1920).astype(np.float32)
    columns = np.random.default_rng(4).integers(0, 20, (3, 17))
    for row in (0, 7):
        answers = []
        for models in (cold, warm):
            heard = one(models.encoder, row, {"pcm": frame}, start=True)
            thought = one(models.temporal, row, {"columns": columns, **sampler(3)}, start=True)
            spoken = one(models.decoder, row, {"codes": heard["codes"]}, start=True)
            codes = one(models.depformer, 0, {**thought, **sampler(3)})
            answers.append([*heard.values(), *thought.values(), *spoken.values(), *codes.values()])
        for before, after in zip(*answers, strict=True):
            np.testing.assert_array_equal(before, after)


def test_a_warm_up_covers_every_size_up_to_all_slots():
    assert warm_up_sizes(1) == [1]
    assert warm_up_sizes(2) == [1, 2]
    assert warm_up_sizes(6) == [1, 2, 4, 6]
    assert warm_up_sizes(64) == [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64]


@pytest.mark.parametrize(
    ("rows", "max_gap", "expected"),
    [
        ([], 3, []),
        ([5], 3, [(5, 6)]),
        ([0, 1, 2], 0, [(0, 3)]),
        ([0, 2, 6], 0, [(0, 1), (2, 3), (6, 7)]),
        ([0, 2, 6], 1, [(0, 3), (6, 7)]),
        ([0, 2, 6], 2.9, [(0, 3), (6, 7)]),
        ([0, 2, 6], 3, [(0, 7)]),
        ([1, 47], math.inf, [(1, 48)]),
    ],
)
def test_runs_take_few_resting_rows_along(rows, max_gap, expected):
    assert row_ranges(rows, max_gap) == expected


@pytest.mark.parametrize(("fixed", "a_row", "gap"), [(0.004, 0.002, 2), (0.009, 0.0005, 18)])
def test_a_warm_up_sees_what_a_resting_row_costs_beside_a_run(golden_models: Path, monkeypatch, fixed, a_row, gap):
    session = Models(golden_models, slots=8).encoder.session
    now = 0.0

    def run(rows: int) -> None:
        nonlocal now
        now += fixed + rows * a_row

    monkeypatch.setattr("model_repository.serving.session.perf_counter", lambda: now)
    assert session.max_gap == math.inf
    warm_up(session, run)
    assert session.max_gap == pytest.approx(gap)
    session.supports_row_ranges = False
    session.max_gap = math.inf
    warm_up(session, run)
    assert session.max_gap == math.inf, "on a device a run has its size"


def test_bindings_are_bounded(golden_models: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session_module, "MOST_BINDINGS", 2)
    models = Models(golden_models)
    answers = []
    for _ in range(2):
        for row in range(4):
            inputs = {"columns": np.ones((1, 17), np.int64), **sampler(0)}
            answers.append(one(models.temporal, row, inputs, start=True)["hidden"])
    assert models.temporal.session._binding.cache_info().currsize == 2
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer, answers[0])
