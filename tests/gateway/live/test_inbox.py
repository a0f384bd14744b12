"""The caller's audio on its way in: how it is cut, how much waits, who is held back and what is dropped."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.live.inbox import Inbox, UserFrame

SIZE = 4
SECONDS = 0.08


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def inbox(clock: Clock) -> Inbox:
    return Inbox(SIZE, SECONDS, capacity=3, clock=clock)


def samples(first: int, count: int) -> NDArray[np.float32]:
    return np.arange(first, first + count, dtype=np.float32)


async def taken(inbox: Inbox) -> list[float]:
    frame = await inbox.take()
    assert frame is not None
    return frame.pcm.tolist()


async def everything(inbox: Inbox) -> list[list[float]]:
    frames = []
    while (frame := await inbox.take()) is not None:
        frames.append(frame.pcm.tolist())
    return frames


async def waits(inbox: Inbox, pcm: NDArray[np.float32]) -> asyncio.Task[None]:
    """Puts, and makes sure that it waits."""
    task = asyncio.create_task(inbox.put(pcm))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
    return task


@pytest.mark.parametrize("pieces", [[4, 4, 4], [12], [1] * 12, [3, 0, 5, 4], [5, 7]])
async def test_samples_are_cut_into_frames_however_they_come(inbox: Inbox, pieces: list[int]) -> None:
    at = 0
    for size in pieces:
        await inbox.put(samples(at, size))
        at += size
    inbox.close()
    assert await everything(inbox) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


async def test_what_is_left_of_a_frame_waits_for_more_and_is_padded_at_the_end(inbox: Inbox) -> None:
    await inbox.put(samples(1, 5))
    assert len(inbox) == 1
    inbox.close()
    assert inbox.closed
    assert await everything(inbox) == [[1, 2, 3, 4], [5, 0, 0, 0]]


async def test_a_frame_knows_when_it_was_complete(inbox: Inbox, clock: Clock) -> None:
    await inbox.put(samples(0, 3))
    clock.now += 1
    await inbox.put(samples(3, 1))
    clock.now += 1
    frame = await inbox.take()
    assert isinstance(frame, UserFrame)
    assert frame.complete_at == 101
    assert inbox.last_at == 101


async def test_take_waits_for_a_frame_and_for_the_end(inbox: Inbox) -> None:
    first = asyncio.create_task(taken(inbox))
    await asyncio.sleep(0)
    await inbox.put(samples(0, 4))
    assert await first == [0, 1, 2, 3]
    second = asyncio.create_task(inbox.take())
    await asyncio.sleep(0)
    inbox.close()
    assert await second is None
    assert await inbox.take() is None


async def test_who_is_ahead_waits_and_loses_nothing(inbox: Inbox) -> None:
    putting = await waits(inbox, samples(0, 20))
    assert len(inbox) == 3
    assert [await taken(inbox) for _ in range(5)] == [[4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3] for i in range(5)]
    await putting
    assert inbox.dropped == 0


async def test_who_is_live_never_waits_and_loses_the_oldest(inbox: Inbox, clock: Clock) -> None:
    for i in range(8):
        clock.now += SECONDS
        async with asyncio.timeout(1):
            await inbox.put(samples(4 * i, 4))
        assert len(inbox) <= 3
    assert inbox.dropped == 5
    assert [(await taken(inbox))[0] for _ in range(3)] == [20, 24, 28]


async def test_a_burst_after_a_pause_is_not_held_back_as_long_as_it_fits(inbox: Inbox, clock: Clock) -> None:
    """As after a stall of the network: as much as could have been spoken meanwhile."""
    await inbox.put(samples(0, 4))
    await taken(inbox)
    clock.now += 10 * SECONDS
    async with asyncio.timeout(1):
        await inbox.put(samples(4, 12))
    assert inbox.dropped == 0
    assert [(await taken(inbox))[0] for _ in range(3)] == [4, 8, 12]


@pytest.mark.parametrize("pause", [3, 10, 1000])
@pytest.mark.parametrize("capacity", [1, 2, 3, 10])
async def test_a_longer_burst_after_a_pause_waits_and_loses_nothing(clock: Clock, pause: int, capacity: int) -> None:
    inbox = Inbox(SIZE, SECONDS, capacity, clock)
    await inbox.put(samples(0, 4))
    await taken(inbox)
    clock.now += pause * SECONDS
    putting = await waits(inbox, samples(4, 4 * 20))
    assert len(inbox) == capacity
    async with asyncio.timeout(1):
        assert [(await taken(inbox))[0] for _ in range(20)] == [4 * i for i in range(1, 21)]
        await putting
    assert inbox.dropped == 0


async def test_who_is_live_again_after_a_pause_never_waits_and_loses_the_oldest(inbox: Inbox, clock: Clock) -> None:
    await inbox.put(samples(0, 4))
    await taken(inbox)
    clock.now += 1000 * SECONDS
    for i in range(1, 9):
        clock.now += SECONDS
        async with asyncio.timeout(1):
            await inbox.put(samples(4 * i, 4))
    assert inbox.dropped == 5
    assert [(await taken(inbox))[0] for _ in range(3)] == [24, 28, 32]


async def test_a_head_start_is_what_was_sent_and_can_have_been_spoken(inbox: Inbox, clock: Clock) -> None:
    assert inbox.head_start() == 0
    clock.now += 5
    await inbox.put(samples(0, 2))
    assert inbox.head_start() == pytest.approx(0.5 * SECONDS)
    await inbox.put(samples(2, 10))
    assert inbox.head_start() == pytest.approx(SECONDS)
    clock.now += SECONDS
    assert inbox.head_start() == pytest.approx(2 * SECONDS)
    clock.now += 100 * SECONDS
    assert inbox.head_start() == pytest.approx(3 * SECONDS)


async def test_a_head_start_counts_what_was_dropped(inbox: Inbox, clock: Clock) -> None:
    for _ in range(8):
        await inbox.put(samples(0, 4))
        clock.now += SECONDS
    assert inbox.dropped == 5
    assert inbox.head_start() == pytest.approx(8 * SECONDS)


async def test_the_end_frees_who_waits(inbox: Inbox) -> None:
    putting = await waits(inbox, samples(0, 40))
    inbox.close()
    await putting
    assert len(await everything(inbox)) == 3


async def test_after_the_end_nothing_comes_in(inbox: Inbox) -> None:
    inbox.close()
    inbox.close()
    await inbox.put(samples(0, 8))
    assert len(inbox) == 0
    assert await inbox.take() is None
