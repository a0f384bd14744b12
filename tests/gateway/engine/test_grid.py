"""The delayed grid, on small numbers one can check by eye."""

from __future__ import annotations

import numpy as np

from gateway.engine.grid import AGENT, TEXT, UNKNOWN, USER, TokenGrid, begin, lay_out

DELAYS = [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1]
PROMPT_COLUMN = np.arange(100, 117)


def frames(count: int) -> np.ndarray:
    """Frame n's token of stream k is 100 n + k."""
    return np.arange(count)[:, None] * 100 + np.arange(17)


def known() -> np.ndarray:
    return np.where(np.array(DELAYS) == 1, 500 + np.arange(17), UNKNOWN)


def test_undelayed_streams_stay_and_delayed_ones_move_a_column_on():
    columns = lay_out(frames(3), DELAYS)
    assert columns.shape == (4, 17)
    assert columns[:, TEXT].tolist() == [0, 100, 200, UNKNOWN]
    assert columns[:, 1].tolist() == [1, 101, 201, UNKNOWN]
    assert columns[:, 2].tolist() == [UNKNOWN, 2, 102, 202]
    assert columns[:, 16].tolist() == [UNKNOWN, 16, 116, 216]


def test_a_beginning_overwrites_the_first_frame():
    columns = lay_out(frames(3), DELAYS)
    begin(columns, DELAYS, np.full(17, 9))
    assert columns[0].tolist() == [9] * 17
    assert columns[1, [0, 1, 2, 9, 10]].tolist() == [100, 101, 9, 109, 9]
    assert columns[2, [0, 1, 2, 9, 10]].tolist() == [200, 201, 102, 209, 110]


def test_what_the_prompt_fixed_is_not_overwritten_by_what_was_drawn():
    grid = TokenGrid(DELAYS, last=PROMPT_COLUMN, known=known(), position=6)
    grid.advance(7, np.arange(70, 78))
    column = grid.hear(np.arange(80, 88))
    assert grid.position == 7
    assert column[TEXT] == 7
    assert column[AGENT].tolist() == [70, *range(502, 509)]
    assert column[USER].tolist() == [80, *range(510, 517)]


def test_a_frame_takes_its_first_codebook_from_the_column_before():
    grid = TokenGrid(DELAYS, last=PROMPT_COLUMN, known=known(), position=6)
    grid.advance(7, np.arange(70, 78))
    assert grid.frame().tolist() == [100, 101, *range(502, 509), 109, *range(510, 517)]
    grid.hear(np.arange(80, 88))
    grid.advance(8, np.arange(90, 98))
    assert grid.frame().tolist() == [7, 70, *range(91, 98), 80, *range(81, 88)]


def test_the_users_later_codebooks_land_in_the_next_column():
    grid = TokenGrid(DELAYS, last=PROMPT_COLUMN, known=known(), position=6)
    grid.advance(7, np.arange(70, 78))
    grid.hear(np.arange(80, 88))
    grid.advance(8, np.arange(90, 98))
    column = grid.hear(np.arange(20, 28))
    assert column[USER].tolist() == [20, *range(81, 88)]
    assert UNKNOWN not in column
