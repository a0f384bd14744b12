"""A call that goes on: far past the window, what is computed stays right, and what it costs stays the same."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from model_repository.checkpoint.folder import Checkpoint
from model_repository.serving.temporal import TemporalModel
from tests.conftest import GOLDEN
from tests.effort import effort
from tests.model_repository.serving.conftest import Models, one, sampler
from tests.model_repository.temporal_numpy import TemporalNumpy

FRAMES = effort(4_000, 20_000)
PROMPT = 300
SETTLED = effort(1_000, 2_000)
"""Frames after which nothing is done for the first time."""

LEVEL_BYTES = 1 << 20
"""A leak of 60 bytes a frame would be more."""

ROUNDING = 1e-5
HOURS_10 = round(10 * 3600 * 12.5)


def reference(checkpoint: Path) -> TemporalNumpy:
    opened = Checkpoint.open(checkpoint)
    return TemporalNumpy(opened.lm, opened.geometry.lm)


def random_columns(count: int, text_card: int, card: int) -> NDArray[np.int64]:
    random = np.random.default_rng(5)
    columns = random.integers(0, card, (count, 17))
    columns[:, 0] = random.integers(0, text_card, count)
    return columns


class Talk:
    """A row's steps, the text fed back; hidden states and text tokens by column."""

    def __init__(self, model: TemporalModel, columns: NDArray[np.int64], dim: int) -> None:
        self.columns = columns
        # Filled, so that their memory is there from the beginning.
        self.hidden = np.full((len(columns), dim), np.nan, np.float32)
        self.text = np.full(len(columns), -1)
        self._model = model

    def feed(self, start: int, stop: int) -> None:
        """Columns start..stop-1 in one turn; a new conversation's if start is 0."""
        inputs = {"columns": self.columns[start:stop], **sampler(stop)}
        answer = one(self._model, 0, inputs, start=start == 0)
        self.hidden[stop - 1], self.text[stop - 1] = answer["hidden"], answer["text_token"][0]
        if stop < len(self.columns):
            self.columns[stop, 0] = self.text[stop - 1]


@dataclass(frozen=True, eq=False)
class LongTalk:
    """columns [FRAMES, 17], hidden [FRAMES, dim] and text [FRAMES] of a talk; seconds [FRAMES] of each step; bytes by
    which its process grew once everything had been done.
    """

    columns: NDArray[np.int64]
    hidden: NDArray[np.float32]
    text: NDArray[np.int64]
    seconds: NDArray[np.float64]
    grown: int


def long_talk(repository: Path) -> LongTalk:
    models = Models(repository, slots=1)
    talk = Talk(models.temporal, random_columns(FRAMES, models.text_card, models.card), models.dim)
    talk.feed(0, PROMPT)
    process = psutil.Process()
    seconds = np.full(FRAMES, np.nan)
    settled = 0
    for frame in range(PROMPT, FRAMES):
        began = perf_counter()
        talk.feed(frame, frame + 1)
        seconds[frame] = perf_counter() - began
        if frame == SETTLED:
            settled = process.memory_info().rss
    grown = process.memory_info().rss - settled
    return LongTalk(talk.columns, talk.hidden, talk.text, seconds, grown)


def test_the_numpy_model_is_the_reference(golden):
    """Through the end of the window, which the golden conversation passes."""
    model = reference(GOLDEN / "checkpoint")
    hidden = model.hidden(golden["model_input"])
    np.testing.assert_allclose(hidden, golden["hidden"], atol=2e-6)
    prompt = int(golden["offset_after_prompt"])
    tokens = model.text_logits(hidden).argmax(axis=-1)
    np.testing.assert_array_equal(tokens[prompt - 1 : -1], golden["model_input"][prompt:, 0])


@pytest.mark.effort
def test_many_frames_are_right_and_take_no_more_memory(tiny_models: Path, capsys: pytest.CaptureFixture[str]):
    # In a process of its own: what other tests have left in this one comes and goes.
    with ProcessPoolExecutor(1, get_context("spawn")) as alone:
        talk = alone.submit(long_talk, tiny_models).result()
    seconds, grown = talk.seconds, talk.grown
    early, late = (np.median(part) * 1e3 for part in (seconds[SETTLED : 2 * SETTLED], seconds[-SETTLED:]))
    with capsys.disabled():
        print(f"\n{FRAMES} frames: {early:.2f} ms a step, in the end {late:.2f} ms; {grown / 2**20:+.1f} MiB")
    assert grown < LEVEL_BYTES

    model = reference(tiny_models.parent / "checkpoint")
    hidden = model.hidden(talk.columns)
    spoken = np.arange(PROMPT - 1, FRAMES)
    np.testing.assert_allclose(talk.hidden[spoken], hidden[spoken], atol=ROUNDING)
    logits = model.text_logits(hidden[spoken])
    best = np.sort(logits, axis=-1)[:, -2:]
    clear = best[:, 1] - best[:, 0] > 10 * ROUNDING
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(talk.text[spoken][clear], logits.argmax(axis=-1)[clear])


def test_ten_hours_into_a_call_positions_are_still_absolute(tiny_models: Path):
    """Begun there: after as many windows as there are layers, nothing from before its first column is left."""
    models = Models(tiny_models, slots=1)
    layers = 2
    count = layers * models.window + 200
    talk = Talk(models.temporal, random_columns(count, models.text_card, models.card), models.dim)
    talk.feed(0, 1)
    models.temporal.slots.position[0] = HOURS_10 + 1
    for frame in range(1, count):
        talk.feed(frame, frame + 1)
    hidden = reference(tiny_models.parent / "checkpoint").hidden(talk.columns, first=HOURS_10)
    np.testing.assert_allclose(talk.hidden[-200:], hidden[-200:], atol=ROUNDING)
