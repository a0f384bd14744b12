"""The fake engine notices what the tests that stand on it must notice."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.engine.backend import Draw
from gateway.engine.fake import FakeEngine, FakeSession
from gateway.manifest import Manifest

DRAW = Draw(seed=1, position=3, top_k=25, temperature=0.7)
LOUD, SOFT = np.full(1920, 0.5, np.float32), np.full(1920, 0.1, np.float32)
COLUMNS = np.arange(4 * 17).reshape(4, 17)


@pytest.fixture
def session(manifest: Manifest) -> FakeSession:
    return FakeEngine(manifest).open()


@pytest.fixture
def other(manifest: Manifest) -> FakeSession:
    return FakeEngine(manifest).open()


async def test_the_order_of_frames_matters(session: FakeSession, other: FakeSession):
    await session.encode(LOUD)
    await other.encode(SOFT)
    assert (await session.encode(SOFT)).tolist() != (await other.encode(LOUD)).tolist()


async def test_a_prefill_is_its_columns_stepped(session: FakeSession, other: FakeSession):
    whole = (await session.prefill(COLUMNS, np.zeros((0, 32), np.float32), DRAW)).thought
    for column in COLUMNS:
        stepped = await other.step(column, DRAW)
    assert (whole.text_token, whole.hidden.tolist()) == (stepped.text_token, stepped.hidden.tolist())


async def test_a_prefix_is_cached_once_it_was_fed(manifest: Manifest):
    engine, none = FakeEngine(manifest), np.zeros((0, 32), np.float32)
    cached = [(await engine.open().prefill(columns, none, DRAW)).cached for columns in (COLUMNS, COLUMNS, COLUMNS[1:])]
    assert cached == [0, 3, 0]


async def test_a_column_of_another_conversation_is_noticed(session: FakeSession, other: FakeSession):
    await other.step(COLUMNS[0], DRAW)
    assert (await session.step(COLUMNS[1], DRAW)).text_token != (await other.step(COLUMNS[1], DRAW)).text_token


async def test_a_closed_session_may_not_be_called(session: FakeSession):
    await session.close()
    with pytest.raises(AssertionError, match="closed session"):
        await session.encode(LOUD)
