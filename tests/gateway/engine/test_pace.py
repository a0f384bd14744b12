"""How large the pieces of a prefill are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.engine.pace import FIRST, LEAST, MOST, SHARE, Pace, piece

FRAME = 0.08
LIMIT = SHARE * FRAME


def settled(fixed: float, per_column: float) -> int:
    """What a model ends at that takes so many seconds per run and per column."""
    pace = Pace(FRAME)
    for _ in range(20):
        columns = pace.columns(others_talk=True)
        pace.took(columns, fixed + per_column * columns)
    return pace.columns(others_talk=True)


@pytest.mark.parametrize(
    ("columns", "seconds", "next_columns"),
    [(300, 0.01, MOST), (MOST, 0.9, MOST), (128, 3.2, 40), (40, 1.0, 40), (8, 10.0, LEAST), (8, 0.0, MOST)],
)
def test_while_nobody_talks_a_piece_is_what_a_second_is_enough_for(columns: int, seconds: float, next_columns: int):
    pace = Pace(FRAME)
    assert pace.columns(others_talk=False) == FIRST
    pace.took(columns, seconds)
    assert pace.columns(others_talk=False) == next_columns
    assert next_columns % LEAST == 0


@pytest.mark.parametrize(("fixed", "per_column"), [(0, 1e-4), (0, 1e-3), (0.002, 5e-5), (0.005, 2e-4), (0, 1e-6)])
def test_while_others_talk_a_piece_takes_its_share_of_a_frame_and_not_much_less(fixed: float, per_column: float):
    columns = settled(fixed, per_column)
    assert fixed + columns * per_column <= LIMIT
    assert columns == MOST or fixed + columns * per_column >= LIMIT / 4


def test_a_model_too_slow_for_any_piece_gets_the_smallest():
    assert settled(0.07, 0.02) == LEAST


def test_a_model_that_becomes_slow_gets_smaller_pieces_again():
    pace = Pace(FRAME)
    for _ in range(10):
        pace.took(pace.columns(others_talk=True), 1e-3)
    assert pace.columns(others_talk=True) == MOST
    pace.took(MOST, 2 * LIMIT)
    assert pace.columns(others_talk=True) == MOST // 2


def test_a_large_piece_tells_what_small_ones_would_take():
    pace = Pace(FRAME)
    pace.took(MOST, 10 * LIMIT)
    assert pace.columns(others_talk=True) == 2 * LEAST
    slow = Pace(FRAME)
    slow.took(MOST, 1000 * LIMIT)
    assert slow.columns(others_talk=True) == LEAST


@pytest.mark.parametrize(("seconds", "rest"), [(0.01, 0.04), (LIMIT, 0.064), (0.5, FRAME)])
def test_while_others_talk_pieces_take_their_share_of_the_time_or_one_comes_with_each_frame(
    seconds: float, rest: float
):
    now = 100.0
    pace = Pace(FRAME, lambda: now)
    assert pace.rest(others_talk=True) == 0
    pace.took(8, seconds)
    assert pace.rest(others_talk=True) == pytest.approx(rest)
    assert pace.rest(others_talk=False) == 0
    now += rest / 2
    assert pace.rest(others_talk=True) == pytest.approx(rest / 2)
    now += rest
    assert pace.rest(others_talk=True) == 0


@given(
    total=st.integers(0, 400),
    window=st.integers(2, 300),
    sizes=st.lists(st.sampled_from([LEAST, 2 * LEAST, 8 * LEAST, MOST]), min_size=1, max_size=5),
)
def test_pieces_are_all_columns_and_none_within_the_window_is_alone_or_out_of_step(
    total: int, window: int, sizes: list[int]
):
    done, runs = 0, []
    while done < total:
        count = piece(done, total, sizes[len(runs) % len(sizes)], window)
        assert count > 0
        assert done % LEAST == 0 or done >= window
        runs.append(min(done + count, window) - done)
        done += count
    assert done == total
    inside = [run for run in runs if run > 0]
    assert sum(inside) == min(total, window)
    assert 1 not in inside or total == 1
