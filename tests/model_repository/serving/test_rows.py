"""What a row computes depends on its own conversation only: not on neighbours, not on which row it is, not on the past.

Compared bit for bit, over conversations that begin at different moments, skip turns and run past the ends of all rings.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_repository.serving.row_request import BadInputError, RowRequest
from tests.effort import effort
from tests.model_repository.serving.conftest import Array, Models, one, sampler, together, turn

ROWS = 8
CONVERSATIONS = effort(4, ROWS)
"""At once: the four kinds of sampling, or every row taken."""
STEPS = 70

pytestmark = pytest.mark.effort


class Script:
    """What one conversation feeds each model at each of its steps; step 0 is a prefill of its own length."""

    def __init__(self, seed: int, models: Models) -> None:
        random = np.random.default_rng(seed)
        self._seed = seed
        self._none = models.no_embeddings()
        self._pcm = random.standard_normal((STEPS, 1920)).astype(np.float32) * 0.2
        self._codes = random.integers(0, models.card, (STEPS, 8))
        self._prompt = self._columns(random, 1 + 7 * seed, models)
        self._steps = self._columns(random, STEPS, models)
        self._sampling: dict[str, Any] = [
            {"temperature": 0.0},
            {"temperature": 0.8, "top_k": 250},
            {"temperature": 1.3, "top_k": 0 if models.max_text_top_k == models.text_card else models.max_text_top_k},
            {"temperature": 0.7, "top_k": 5},
        ][seed % 4]

    @staticmethod
    def _columns(random: np.random.Generator, count: int, models: Models) -> Array:
        columns = random.integers(0, models.card, (count, 17))
        columns[:, 0] = random.integers(0, models.text_card, count)
        return columns

    def inputs(self, step: int) -> dict[str, dict[str, Array]]:
        columns = self._prompt if step == 0 else self._steps[step : step + 1]
        sampling = sampler(step, seed=self._seed, **self._sampling)
        return {
            "encoder": {"pcm": self._pcm[step]},
            "decoder": {"codes": self._codes[step]},
            "temporal": {"columns": columns, "embeddings": self._none, **sampling},
        }


Trace = dict[tuple[str, int, int, str], Array]
"""(model, conversation, step, output) -> value."""


def play(models: Models, scripts: list[Script], schedule: list[dict[int, tuple[int, int]]]) -> Trace:
    """Run a schedule of {row: (conversation, step)}; depformer batches hold whoever takes part."""
    trace: Trace = {}

    def record(model: str, turns: list[RowRequest], who: Mapping[int, tuple[int, int]]) -> None:
        for row, outputs in together(getattr(models, model), turns).items():
            trace.update({(model, *who[row], name): value for name, value in outputs.items()})

    for moment in schedule:
        for model in ("encoder", "decoder", "temporal"):
            turns = [
                turn(getattr(models, model), row, scripts[conversation].inputs(step)[model], start=step == 0)
                for row, (conversation, step) in moment.items()
            ]
            record(model, turns, moment)
        turns = []
        for row, (conversation, step) in moment.items():
            thought = {name: trace["temporal", conversation, step, name] for name in ("hidden", "text_token")}
            sampling = scripts[conversation].inputs(step)["temporal"]
            turns.append(RowRequest.one(row, {**sampling, **thought}))
        record("depformer", turns, moment)
    return trace


def interleaved(random: np.random.Generator, rows: list[int], probability: float) -> list[dict[int, tuple[int, int]]]:
    """Conversation c on rows[c]: late starts, and turns skipped at random."""
    done = [0] * CONVERSATIONS
    late = random.integers(0, 12, CONVERSATIONS)
    schedule = []
    moment = 0
    while min(done) < STEPS:
        ready = [
            c for c in range(CONVERSATIONS) if done[c] < STEPS and moment >= late[c] and random.random() < probability
        ]
        schedule.append({rows[c]: (c, done[c]) for c in sorted(ready, key=lambda c: rows[c])})
        for c in ready:
            done[c] += 1
        moment += 1
    return [turn for turn in schedule if turn]


@pytest.fixture(
    scope="module",
    params=["golden_models", *(pytest.param(each, marks=pytest.mark.long) for each in ("tiny_models", "cuda_models"))],
)
def repository(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def scripts(repository: Path) -> list[Script]:
    models = Models(repository)
    return [Script(seed, models) for seed in range(CONVERSATIONS)]


@pytest.fixture(scope="module")
def alone(repository: Path, scripts: list[Script]) -> Trace:
    """Every conversation by itself, all on one row after the other."""
    models = Models(repository)
    trace: Trace = {}
    for conversation in range(CONVERSATIONS):
        trace |= play(models, scripts, [{5: (conversation, step)} for step in range(STEPS)])
    return trace


@pytest.mark.parametrize(
    "probability", [pytest.param(1.0, marks=pytest.mark.long), 0.6, pytest.param(0.2, marks=pytest.mark.long)]
)
def test_neighbours_and_rows_change_nothing(repository, scripts, alone, probability):
    random = np.random.default_rng(int(probability * 10))
    rows = [int(row) for row in random.permutation(ROWS)]
    shared = play(Models(repository), scripts, interleaved(random, rows, probability))
    assert shared.keys() == alone.keys()
    different = {key[:1] + key[3:] for key in alone if not np.array_equal(alone[key], shared[key])}
    assert not different


def test_how_rows_are_put_into_runs_changes_nothing(repository, scripts, alone):
    """In one run with all resting rows between them, or each by itself: both happen, as is cheaper on a machine."""
    models = Models(repository)
    for model in (models.encoder, models.decoder, models.temporal):
        if model.session.supports_row_ranges:
            model.session.max_gap = 1
    apart = play(models, scripts, interleaved(np.random.default_rng(3), list(range(ROWS)), 0.4))
    assert all(np.array_equal(alone[key], value) for key, value in apart.items())


def test_a_start_does_not_see_the_last_tenant(repository, scripts, alone):
    """Row 2 has been used past the end of its rings, and was cut off in the middle."""
    models = Models(repository)
    play(models, scripts, [{2: (0, step)} for step in range(STEPS)])
    play(models, scripts, [{2: (CONVERSATIONS - 1, step)} for step in range(13)])
    again = play(models, scripts, [{2: (2, step)} for step in range(STEPS)])
    assert all(np.array_equal(alone[key], value) for key, value in again.items())


def test_a_row_that_never_ran_is_not_disturbed_by_null_rows(repository, scripts, alone):
    """Rows 0 and 7 run; the rows between them are computed along, and must start as if nothing had been."""
    models = Models(repository)
    play(models, scripts, [{0: (0, step), 7: (1, step)} for step in range(30)])
    later = play(models, scripts, [{4: (2, step)} for step in range(STEPS)])
    assert all(np.array_equal(alone[key], value) for key, value in later.items())


@pytest.fixture(scope="module")
def models(repository: Path) -> Models:
    """For tests of one request."""
    return Models(repository)


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        ("encoder", {"pcm": np.full(1920, np.nan, np.float32)}, "finite"),
        ("encoder", {"pcm": np.zeros(1919, np.float32)}, r"expected float32 of shape \[1920\], got float32 \[1919\]"),
        ("decoder", {"codes": np.full(8, 1 << 20)}, "values must be in"),
        ("decoder", {"codes": np.zeros(8, np.float32)}, "expected int64"),
    ],
)
def test_the_codec_names_what_is_wrong(models, model, inputs, message):
    with pytest.raises(BadInputError, match=message):
        getattr(models, model).parse(RowRequest.one(0, inputs))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"columns": np.zeros((0, 17), np.int64)}, "at least one column"),
        ({"columns": np.zeros((1, 16), np.int64)}, r"expected int64 of shape \[-1, 17\], got int64 \[1, 16\]"),
        ({"columns": np.full((1, 17), 2050)}, "values must be in"),
        ({"columns": np.full((1, 17), -1)}, "values must be in"),
        ({"sampler": np.array([0, 0, -1])}, "top_k must be >= 0"),
        ({"temperature": np.array([np.nan], np.float32)}, "temperature finite"),
        ({"temperature": np.array([-0.5], np.float32)}, "temperature finite"),
    ],
)
def test_temporal_names_what_is_wrong(models, change, message):
    good = {"columns": np.zeros((1, 17), np.int64), "embeddings": models.no_embeddings(), **sampler(1)}
    with pytest.raises(BadInputError, match=message):
        models.temporal.parse(RowRequest.one(0, good | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": np.zeros(3, np.float32)}, r"hidden: expected float32 of shape"),
        (lambda models: {"hidden": np.full(models.dim, np.inf, np.float32)}, "hidden: values must be finite"),
        ({"text_token": np.array([-1])}, "text_token: values must be in"),
        (lambda models: {"text_token": np.array([models.text_card + 1])}, "text_token: values must be in"),
        ({"sampler": np.zeros(2, np.int64)}, r"sampler: expected int64 of shape \[3\], got int64 \[2\]"),
        ({"sampler": np.array([0, 0, -1])}, "top_k must be >= 0"),
    ],
)
def test_depformer_names_what_is_wrong(models, change, message):
    good = {"hidden": np.zeros(models.dim, np.float32), "text_token": np.zeros(1, np.int64), **sampler(1)}
    changed = change(models) if callable(change) else change
    with pytest.raises(BadInputError, match=message):
        models.depformer.parse(RowRequest.one(0, good | changed))


@pytest.mark.parametrize("number", [-1, -(2**63), 2**63 - 1])
def test_any_seed_and_column_can_be_sampled(models, number):
    given = {"sampler": np.array([number, number, 5]), "temperature": np.array([0.8], np.float32)}
    answer = one(models.temporal, 0, {"columns": np.zeros((1, 17), np.int64), **given}, start=True)
    assert 0 <= answer["text_token"][0] < models.text_card
