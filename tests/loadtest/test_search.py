"""The search for the highest number that holds."""

from __future__ import annotations

import pytest

from loadtest.search import highest


@pytest.mark.parametrize("step", [1, 4])
@pytest.mark.parametrize("first", [1, 8, 32, 200])
@pytest.mark.parametrize("truth", [0, 3, 4, 7, 8, 31, 32, 33, 52, 127, 128, 500])
def test_it_finds_the_edge_and_asks_nothing_twice(truth: int, first: int, step: int):
    asked: list[int] = []

    def holds(callers: int) -> bool:
        asked.append(callers)
        return callers <= truth

    found = highest(holds, first, limit=128, step=step)
    assert found == min(truth, 128) // step * step
    assert len(asked) == len(set(asked))
    assert all(0 < callers <= 128 for callers in asked)
    assert len(asked) <= 16
