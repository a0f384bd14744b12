"""The caller's audio on its way in: how it is cut, how much waits, who is held back and what is dropped."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.session.input_queue import InputQueue, UserFrame

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
def input_queue(clock: Clock) -> InputQueue:
    return InputQueue(SIZE, SECONDS, capacity=3, clock=clock)


def samples(first: int, count: int) -> NDArray[np.float32]:
    return np.arange(first, first + count, dtype=np.float32)


async def taken(input_queue: InputQueue) -> list[float]:
    frame = await input_queue.take()
    assert frame is not None
    return frame.pcm.tolist()


async def everything(input_queue: InputQueue) -> list[list[float]]:
    frames = []
    while (frame := await input_queue.take()) is not None:
        frames.append(frame.pcm.tolist())
    return frames


async def waits(input_queue: InputQueue, pcm: NDArray[np.float32]) -> asyncio.Task[None]:
    """Puts, and makes sure that it waits."""
    task = asyncio.create_task(input_queue.put(pcm))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
    return task


@pytest.mark.parametrize("pieces", [[4, 4, 4], [12], [1] * 12, [3, 0, 5, 4], [5, 7]])
async def test_samples_are_cut_into_frames_however_they_come(input_queue: InputQueue, pieces: list[int]) -> None:
    at = 0
    for size in pieces:
        await input_queue.put(samples(at, size))
        at += size
    input_queue.close()
    assert await everything(input_queue) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


async def test_what_is_left_of_a_frame_waits_for_more_and_is_padded_at_the_end(input_queue: InputQueue) -> None:
    await input_queue.put(samples(1, 5))
    assert len(input_queue) == 1
    input_queue.close()
    assert input_queue.closed
    assert await everything(input_queue) == [[1, 2, 3, 4], [5, 0, 0, 0]]


async def test_a_frame_knows_when_it_was_complete(input_queue: InputQueue, clock: Clock) -> None:
    await input_queue.put(samples(0, 3))
    clock.now += 1
    await input_queue.put(samples(3, 1))
    clock.now += 1
    frame = await input_queue.take()
    assert isinstance(frame, UserFrame)
    assert frame.complete_at == 101
    assert input_queue.last_at == 101


async def test_take_waits_for_a_frame_and_for_the_end(input_queue: InputQueue) -> None:
    first = asyncio.create_task(taken(input_queue))
    await asyncio.sleep(0)
    await input_queue.put(samples(0, 4))
    assert await first == [0, 1, 2, 3]
    second = asyncio.create_task(input_queue.take())
    await asyncio.sleep(0)
    input_queue.close()
    assert await second is None
    assert await input_queue.take() is None


async def test_who_is_ahead_waits_and_loses_nothing(input_queue: InputQueue) -> None:
    putting = await waits(input_queue, samples(0, 20))
    assert len(input_queue) == 3
    assert [await taken(input_queue) for _ in range(5)] == [[4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3] for i in range(5)]
    await putting
    assert input_queue.dropped == 0


async def test_who_is_live_never_waits_and_loses_the_oldest(input_queue: InputQueue, clock: Clock) -> None:
    for i in range(8):
        clock.now += SECONDS
        async with asyncio.timeout(1):
            await input_queue.put(samples(4 * i, 4))
        assert len(input_queue) <= 3
    assert input_queue.dropped == 5
    assert [(await taken(input_queue))[0] for _ in range(3)] == [20, 24, 28]


async def test_a_burst_after_a_pause_is_not_held_back_as_long_as_it_fits(input_queue: InputQueue, clock: Clock) -> None:
    """As after a stall of the network: as much as could have been spoken meanwhile."""
    await input_queue.put(samples(0, 4))
    await taken(input_queue)
    clock.now += 10 * SECONDS
    async with asyncio.timeout(1):
        await input_queue.put(samples(4, 12))
    assert input_queue.dropped == 0
    assert [(await taken(input_queue))[0] for _ in range(3)] == [4, 8, 12]


@pytest.mark.parametrize("pause", [3, 10, 1000])
@pytest.mark.parametrize("capacity", [1, 2, 3, 10])
async def test_a_longer_burst_after_a_pause_waits_and_loses_nothing(clock: Clock, pause: int, capacity: int) -> None:
    input_queue = InputQueue(SIZE, SECONDS, capacity, clock)
    await input_queue.put(samples(0, 4))
    await taken(input_queue)
    clock.now += pause * SECONDS
    putting = await waits(input_queue, samples(4, 4 * 20))
    assert len(input_queue) == capacity
    async with asyncio.timeout(1):
        assert [(await taken(input_queue))[0] for _ in range(20)] == [4 * i for i in range(1, 21)]
        await putting
    assert input_queue.dropped == 0


async def test_who_is_live_again_after_a_pause_never_waits_and_loses_the_oldest(
    input_queue: InputQueue, clock: Clock
) -> None:
    await input_queue.put(samples(0, 4))
    await taken(input_queue)
    clock.now += 1000 * SECONDS
    for i in range(1, 9):
        clock.now += SECONDS
        async with asyncio.timeout(1):
            await input_queue.put(samples(4 * i, 4))
    assert input_queue.dropped == 5
    assert [(await taken(input_queue))[0] for _ in range(3)] == [24, 28, 32]


async def test_a_head_start_is_what_was_sent_and_can_have_been_spoken(input_queue: InputQueue, clock: Clock) -> None:
    assert input_queue.head_start() == 0
    clock.now += 5
    await input_queue.put(samples(0, 2))
    assert input_queue.head_start() == pytest.approx(0.5 * SECONDS)
    await input_queue.put(samples(2, 10))
    assert input_queue.head_start() == pytest.approx(SECONDS)
    clock.now += SECONDS
    assert input_queue.head_start() == pytest.approx(2 * SECONDS)
    clock.now += 100 * SECONDS
    assert input_queue.head_start() == pytest.approx(3 * SECONDS)


async def test_a_head_start_counts_what_was_dropped(input_queue: InputQueue, clock: Clock) -> None:
    for _ in range(8):
        await input_queue.put(samples(0, 4))
        clock.now += SECONDS
    assert input_queue.dropped == 5
    assert input_queue.head_start() == pytest.approx(8 * SECONDS)


async def test_the_end_frees_who_waits(input_queue: InputQueue) -> None:
    putting = await waits(input_queue, samples(0, 40))
    input_queue.close()
    await putting
    assert len(await everything(input_queue)) == 3


async def test_after_the_end_nothing_comes_in(input_queue: InputQueue) -> None:
    input_queue.close()
    input_queue.close()
    await input_queue.put(samples(0, 8))
    assert len(input_queue) == 0
    assert await input_queue.take() is None
