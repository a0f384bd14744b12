"""The delayed token grid, on small numbers one can check by eye."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.engine.grid import AGENT, TEXT, UNKNOWN, USER, TokenGrid, delay_frames, set_initial_tokens
from gateway.engine.prefix import PromptPrefix

DELAYS = [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1]
PROMPT_STEP = np.arange(100, 117)
FIXED = np.where(np.array(DELAYS) == 1, 500 + np.arange(17), UNKNOWN)
SLOT = np.array([1])


def frames(count: int) -> np.ndarray:
    """Frame n's token of stream k is 100 n + k."""
    return np.arange(count)[:, None] * 100 + np.arange(17)


@pytest.fixture
def grid() -> TokenGrid:
    """Three slots; a conversation begins in slot 1."""
    grid = TokenGrid(3, DELAYS)
    grid.start(1, PromptPrefix(np.zeros((6, 4), np.float32), PROMPT_STEP[None], FIXED))
    return grid


def emit(grid: TokenGrid, text: int, first_code: int) -> list[int]:
    return grid.emit(SLOT, np.array([text]), np.arange(first_code, first_code + 8)[None])[0].tolist()


def advance(grid: TokenGrid, first_code: int) -> np.ndarray:
    return grid.advance(SLOT, np.arange(first_code, first_code + 8)[None])[0]


def test_undelayed_streams_stay_and_delayed_ones_move_one_step():
    steps = delay_frames(frames(3), DELAYS)
    assert steps.shape == (4, 17)
    assert steps[:, TEXT].tolist() == [0, 100, 200, UNKNOWN]
    assert steps[:, 1].tolist() == [1, 101, 201, UNKNOWN]
    assert steps[:, 2].tolist() == [UNKNOWN, 2, 102, 202]
    assert steps[:, 16].tolist() == [UNKNOWN, 16, 116, 216]


def test_initial_tokens_overwrite_the_first_frame():
    steps = delay_frames(frames(3), DELAYS)
    set_initial_tokens(steps, DELAYS, np.full(17, 9))
    assert steps[0].tolist() == [9] * 17
    assert steps[1, [0, 1, 2, 9, 10]].tolist() == [100, 101, 9, 109, 9]
    assert steps[2, [0, 1, 2, 9, 10]].tolist() == [200, 201, 102, 209, 110]


def test_sampled_tokens_do_not_overwrite_what_the_prompt_fixed(grid: TokenGrid):
    emit(grid, 7, 70)
    step = advance(grid, 80)
    assert step[TEXT] == 7
    assert step[AGENT].tolist() == [70, *range(502, 509)]
    assert step[USER].tolist() == [80, *range(510, 517)]


def test_a_frame_takes_its_first_codebook_from_the_step_before(grid: TokenGrid):
    assert emit(grid, 7, 70) == [100, 101, *range(502, 509), 109, *range(510, 517)]
    advance(grid, 80)
    assert emit(grid, 8, 90) == [7, 70, *range(91, 98), 80, *range(81, 88)]


def test_the_users_later_codebooks_belong_to_the_next_step(grid: TokenGrid):
    emit(grid, 7, 70)
    advance(grid, 80)
    emit(grid, 8, 90)
    step = advance(grid, 20)
    assert step[USER].tolist() == [20, *range(81, 88)]
    assert UNKNOWN not in step


def test_advancing_twice_is_advancing_once(grid: TokenGrid):
    emit(grid, 7, 70)
    assert advance(grid, 80).tolist() == advance(grid, 80).tolist()
    assert emit(grid, 8, 90) == [7, 70, *range(91, 98), 80, *range(81, 88)]


def test_slots_of_a_batch_do_not_touch_each_other():
    grid = TokenGrid(3, DELAYS)
    for slot in range(3):
        grid.start(slot, PromptPrefix(np.zeros((0, 4), np.float32), PROMPT_STEP[None] + 1000 * slot, FIXED))
    slots = np.array([2, 0])
    emitted = grid.emit(slots, np.array([8, 9]), np.stack([np.arange(70, 78), np.arange(80, 88)]))
    assert emitted[:, TEXT].tolist() == [2100, 100]
    steps = grid.advance(slots, np.zeros((2, 8), np.int64))
    assert steps[:, TEXT].tolist() == [8, 9]
    assert grid.advance(np.array([1]), np.zeros((1, 8), np.int64))[0, TEXT] == 1100
