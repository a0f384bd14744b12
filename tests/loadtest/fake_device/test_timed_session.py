"""Sessions that take time instead of computing: their time, and outputs that differ between conversations."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from loadtest.fake_device.build import signatures
from loadtest.fake_device.timed_session import SIGNATURE, TimedSession, Timing
from model_repository.checkpoint.geometry import Geometry
from model_repository.serving.row_request import RowRequest
from model_repository.serving.temporal import TemporalModel
from model_repository.synthetic.tiny import TINY_CONFIG
from tests.model_repository.serving.conftest import together, turn

GEOMETRY = Geometry.from_config(TINY_CONFIG)
SLOTS = 8
NO_TIME = Timing(run=0.0, row=0.0)
WINDOW = GEOMETRY.lm.temporal.window


@pytest.fixture
def model(tmp_path: Path) -> Callable[[str], Path]:
    """Where the graph of a model would be."""

    def at(name: str) -> Path:
        version = tmp_path / name / "1"
        version.mkdir(parents=True, exist_ok=True)
        (version / SIGNATURE).write_text(json.dumps(signatures(GEOMETRY, 512)[name]))
        return version / "model.onnx"

    return at


@pytest.fixture
def temporal(model: Callable[[str], Path]) -> Callable[..., TemporalModel]:
    def make(timing: Timing = NO_TIME) -> TemporalModel:
        lm = GEOMETRY.lm
        opened = partial(TimedSession, timing=timing)
        return TemporalModel(model("temporal"), SLOTS, lm.text_card, lm.card, WINDOW, opened)

    return make


def _columns(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 500, (count, 17))


def _turn(
    model: TemporalModel, row: int, columns: np.ndarray, start: bool = False, seed: int = 1, temperature: float = 0.7
) -> RowRequest:
    sampler = {"sampler": np.array([seed, 5, 25]), "temperature": np.array([temperature], np.float32)}
    return turn(model, row, {"columns": columns, **sampler}, start=start)


def _answer(model: TemporalModel, *requests: RowRequest) -> dict[int, tuple[int, bytes]]:
    outputs = together(model, requests)
    return {row: (int(out["text_token"][0]), out["hidden"].tobytes()) for row, out in outputs.items()}


def test_a_run_takes_its_rows_and_their_filled_positions() -> None:
    timing = Timing(run=1.0, row=0.1, position=0.001, window=100)
    assert timing.seconds(np.array([1, 10, 100])) == pytest.approx(1.0 + 0.3 + 0.001 * (1 + 10 + 100))
    assert Timing(1.0, 0.1, 0.001, window=100, full_windows=True).seconds(np.array([2, 9])) == pytest.approx(1.4)
    # A row that rests costs no more than its slot.
    assert Timing(1.0, 0.1, 0.001, window=100, full_windows=True).seconds(np.array([2, 1])) == pytest.approx(1.301)
    assert Timing(1.0, 0.1, 0.001).seconds(np.array([0, 9])) == pytest.approx(1.2)


def test_timings_survive_the_config_of_a_model() -> None:
    timing = Timing(run=0.0035, row=1e-6, position=1.4e-7, restore=5.4e-5, window=2999, full_windows=True)
    assert Timing.of(timing.parameters()) == timing


def test_a_run_sleeps_without_using_the_processor(model: Callable[[str], Path]) -> None:
    session = TimedSession(model("mimi_encoder"), SLOTS, Timing(run=0.1, row=0.01))
    # Of this thread: others of the process may end what earlier tests began.
    wall, cpu = time.perf_counter(), time.thread_time()
    session.run(0, 3)
    # Rows come in powers of two.
    assert time.perf_counter() - wall >= 0.14
    assert time.thread_time() - cpu < 0.05


def test_a_row_s_outputs_do_not_depend_on_its_company(temporal: Callable[..., TemporalModel]) -> None:
    alone, shared = temporal(), temporal()
    columns = _columns(4)
    for step in range(4):
        mine = _answer(alone, _turn(alone, 2, columns[step : step + 1], step == 0))[2]
        others = [_turn(shared, row, _columns(1, 10 * row + step), step == 0) for row in (0, 5)]
        assert _answer(shared, *others, _turn(shared, 2, columns[step : step + 1], step == 0))[2] == mine


def test_outputs_depend_on_every_input_and_on_the_past(temporal: Callable[..., TemporalModel]) -> None:
    columns = _columns(2)

    def last(first: np.ndarray, second: np.ndarray, **sampling: float) -> tuple[int, bytes]:
        model = temporal()
        _answer(model, _turn(model, 0, first, start=True))
        return _answer(model, _turn(model, 0, second, **sampling))[0]

    usual = last(columns[:1], columns[1:])
    assert last(columns[:1], columns[1:]) == usual
    assert last(_columns(1, 7), columns[1:]) != usual
    assert last(columns[:1], _columns(1, 7)) != usual
    assert last(columns[:1], columns[1:], seed=2) != usual
    assert last(columns[:1], columns[1:], temperature=0.9) != usual


def test_a_start_forgets_the_row_s_past(temporal: Callable[..., TemporalModel]) -> None:
    model = temporal()
    fresh = _answer(model, _turn(model, 0, _columns(1), start=True))
    _answer(model, _turn(model, 0, _columns(1, 3)))
    assert _answer(model, _turn(model, 0, _columns(1), start=True)) == fresh


def test_a_prefill_leaves_what_single_steps_leave(temporal: Callable[..., TemporalModel]) -> None:
    columns = _columns(140)
    stepped, prefilled = temporal(), temporal()
    _answer(prefilled, _turn(prefilled, 1, columns[:139], start=True))
    for step in range(139):
        _answer(stepped, _turn(stepped, 1, columns[step : step + 1], step == 0))
    assert _answer(prefilled, _turn(prefilled, 1, columns[139:])) == _answer(stepped, _turn(stepped, 1, columns[139:]))


def test_a_restored_prefix_is_as_good_as_a_fed_one(model: Callable[[str], Path]) -> None:
    session = TimedSession(model("temporal"), SLOTS, NO_TIME)

    def step(row: int, column: np.ndarray) -> int:
        session.feeds["columns"][row] = column
        session.run(row, row + 1)
        session.feeds["position"][row] += 1
        return int(session.results["text_token"][row])

    columns = _columns(3)
    for column in columns[:2]:
        step(0, column)
    saved = session.save(0, 2)
    session.reset(4)
    session.restore(4, saved)
    session.feeds["position"][4] = 2
    assert step(4, columns[2]) == step(0, columns[2])


def test_models_share_one_device(model: Callable[[str], Path]) -> None:
    # In one process as in several: each session has its own handle of the lock.
    sessions = [TimedSession(model(name), SLOTS, Timing(0.1, 0.0)) for name in ("mimi_encoder", "mimi_decoder")]
    threads = [threading.Thread(target=session.run, args=(0, 1)) for session in sessions]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.perf_counter() - began >= 0.2
