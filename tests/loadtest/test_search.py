"""The search for the highest number that holds."""

from __future__ import annotations

import pytest

from loadtest.search import highest


@pytest.mark.parametrize("step", [1, 4])
@pytest.mark.parametrize("first", [1, 8, 32, 200])
@pytest.mark.parametrize("truth", [0, 3, 4, 7, 8, 31, 32, 33, 52, 127, 128, 500])
def test_it_finds_the_highest_number_and_tries_none_twice(truth: int, first: int, step: int):
    tried: list[int] = []

    def holds(users: int) -> bool:
        tried.append(users)
        return users <= truth

    found = highest(holds, first, limit=128, step=step)
    assert found == min(truth, 128) // step * step
    assert len(tried) == len(set(tried))
    assert all(0 < users <= 128 for users in tried)
    assert len(tried) <= 16
