"""How large the chunks of a prefill are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.engine.prefill import FIRST_STEPS, MAX_SHARED_STEPS, MAX_STEPS, MIN_STEPS, SHARE, ChunkPacer, chunk_length

FRAME = 0.08
LIMIT = SHARE * FRAME


def settled(fixed: float, per_step: float) -> int:
    """What a model ends at that takes so many seconds per run and per step."""
    pacer = ChunkPacer(FRAME)
    for _ in range(20):
        steps = pacer.steps(others_talk=True)
        pacer.measured(steps, fixed + per_step * steps)
    return pacer.steps(others_talk=True)


@pytest.mark.parametrize(
    ("steps", "seconds", "next_steps"),
    [
        (300, 0.01, MAX_STEPS),
        (MAX_STEPS, 0.9, MAX_STEPS),
        (128, 3.2, 40),
        (40, 1.0, 40),
        (8, 10.0, MIN_STEPS),
        (8, 0.0, MAX_STEPS),
    ],
)
def test_while_nobody_talks_a_chunk_is_what_a_second_is_enough_for(steps: int, seconds: float, next_steps: int):
    pacer = ChunkPacer(FRAME)
    assert pacer.steps(others_talk=False) == FIRST_STEPS
    pacer.measured(steps, seconds)
    assert pacer.steps(others_talk=False) == next_steps
    assert next_steps % MIN_STEPS == 0


@pytest.mark.parametrize(("fixed", "per_step"), [(0, 1e-4), (0, 1e-3), (0.002, 5e-5), (0.005, 2e-4), (0, 1e-6)])
def test_while_others_talk_a_chunk_takes_its_share_of_a_frame_and_not_much_less(fixed: float, per_step: float):
    steps = settled(fixed, per_step)
    assert fixed + steps * per_step <= LIMIT
    assert steps == MAX_SHARED_STEPS or fixed + steps * per_step >= LIMIT / 4


def test_a_model_too_slow_for_any_chunk_gets_the_smallest():
    assert settled(0.07, 0.02) == MIN_STEPS


def test_a_model_that_becomes_slow_gets_smaller_chunks_again():
    pacer = ChunkPacer(FRAME)
    for _ in range(10):
        pacer.measured(pacer.steps(others_talk=True), 1e-3)
    assert pacer.steps(others_talk=True) == MAX_SHARED_STEPS
    pacer.measured(MAX_SHARED_STEPS, 2 * LIMIT)
    assert pacer.steps(others_talk=True) == MAX_SHARED_STEPS // 2


def test_a_large_chunk_tells_what_small_ones_would_take():
    pacer = ChunkPacer(FRAME)
    pacer.measured(MAX_STEPS, 10 * LIMIT)
    assert pacer.steps(others_talk=True) == 2 * MIN_STEPS
    slow = ChunkPacer(FRAME)
    slow.measured(MAX_STEPS, 1000 * LIMIT)
    assert slow.steps(others_talk=True) == MIN_STEPS


@pytest.mark.parametrize(("seconds", "rest"), [(0.01, 0.04), (LIMIT, 0.064), (0.5, FRAME)])
def test_while_others_talk_chunks_take_their_share_of_the_time_or_one_comes_with_each_frame(
    seconds: float, rest: float
):
    now = 100.0
    pacer = ChunkPacer(FRAME, lambda: now)
    assert pacer.pause(others_talk=True) == 0
    pacer.measured(8, seconds)
    assert pacer.pause(others_talk=True) == pytest.approx(rest)
    assert pacer.pause(others_talk=False) == 0
    now += rest / 2
    assert pacer.pause(others_talk=True) == pytest.approx(rest / 2)
    now += rest
    assert pacer.pause(others_talk=True) == 0


@given(
    total=st.integers(0, 400),
    window=st.integers(2, 300),
    sizes=st.lists(st.sampled_from([MIN_STEPS, 2 * MIN_STEPS, 8 * MIN_STEPS, MAX_STEPS]), min_size=1, max_size=5),
)
def test_chunks_are_all_steps_and_none_within_the_window_is_alone_or_out_of_step(
    total: int, window: int, sizes: list[int]
):
    done, runs = 0, []
    while done < total:
        count = chunk_length(done, total, sizes[len(runs) % len(sizes)], window)
        assert count > 0
        assert done % MIN_STEPS == 0 or done >= window
        runs.append(min(done + count, window) - done)
        done += count
    assert done == total
    inside = [run for run in runs if run > 0]
    assert sum(inside) == min(total, window)
    assert 1 not in inside or total == 1
