"""The input queue: framing, capacity, back-pressure and dropped frames."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.session.input_queue import InputQueue
from gateway.session.limits import LiveLimits

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


def queue_of(capacity: int, clock: Clock) -> InputQueue:
    return InputQueue(SIZE, SECONDS, LiveLimits(input_frames=capacity, speed=0), clock=clock)


@pytest.fixture
def input_queue(clock: Clock) -> InputQueue:
    return queue_of(3, clock)


def samples(first: int, count: int) -> NDArray[np.float32]:
    return np.arange(first, first + count, dtype=np.float32)


async def take(input_queue: InputQueue) -> list[float]:
    frame = await input_queue.take()
    assert frame is not None
    return frame.tolist()


async def take_all(input_queue: InputQueue) -> list[list[float]]:
    frames = []
    while (frame := await input_queue.take()) is not None:
        frames.append(frame.tolist())
    return frames


async def put_waits(input_queue: InputQueue, pcm: NDArray[np.float32]) -> asyncio.Task[None]:
    """Put samples and check that the call waits."""
    task = asyncio.create_task(input_queue.put(pcm))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
    return task


@pytest.mark.parametrize("pieces", [[4, 4, 4], [12], [1] * 12, [3, 0, 5, 4], [5, 7]])
async def test_samples_are_cut_into_frames(input_queue: InputQueue, pieces: list[int]) -> None:
    at = 0
    for size in pieces:
        await input_queue.put(samples(at, size))
        at += size
    input_queue.close()
    assert await take_all(input_queue) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


async def test_an_incomplete_frame_is_padded_at_the_end(input_queue: InputQueue) -> None:
    await input_queue.put(samples(1, 5))
    assert len(input_queue.frames) == 1
    input_queue.close()
    assert input_queue.closed
    assert await take_all(input_queue) == [[1, 2, 3, 4], [5, 0, 0, 0]]


async def test_a_frame_is_due_when_it_is_complete(input_queue: InputQueue, clock: Clock) -> None:
    taking = asyncio.create_task(input_queue.take())
    await asyncio.sleep(0)
    await input_queue.put(samples(0, 3))
    clock.now += 1
    await input_queue.put(samples(3, 1))
    clock.now += 1
    await taking
    assert input_queue.due_at == 101
    assert input_queue.last_at == 101


async def test_take_waits_for_a_frame_and_for_the_end(input_queue: InputQueue) -> None:
    first = asyncio.create_task(take(input_queue))
    await asyncio.sleep(0)
    await input_queue.put(samples(0, 4))
    assert await first == [0, 1, 2, 3]
    second = asyncio.create_task(input_queue.take())
    await asyncio.sleep(0)
    input_queue.close()
    assert await second is None
    assert await input_queue.take() is None


async def test_a_client_that_is_ahead_waits_and_loses_nothing(input_queue: InputQueue) -> None:
    putting = await put_waits(input_queue, samples(0, 20))
    assert len(input_queue.frames) == 3
    taken = []
    for _ in range(5):
        taken.append(await take(input_queue))
        await asyncio.sleep(0)
    assert taken == [[4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3] for i in range(5)]
    await putting
    assert input_queue.dropped == 0


async def test_a_client_in_real_time_never_waits_and_loses_the_oldest(input_queue: InputQueue, clock: Clock) -> None:
    for i in range(8):
        clock.now += SECONDS
        async with asyncio.timeout(1):
            await input_queue.put(samples(4 * i, 4))
        assert len(input_queue.frames) <= 3
    assert input_queue.dropped == 5
    assert [(await take(input_queue))[0] for _ in range(3)] == [20, 24, 28]


async def test_a_burst_after_a_pause_does_not_wait_if_it_fits(input_queue: InputQueue, clock: Clock) -> None:
    """A network that stalled delivers as much audio as time has passed."""
    await input_queue.put(samples(0, 4))
    await take(input_queue)
    clock.now += 10 * SECONDS
    async with asyncio.timeout(1):
        await input_queue.put(samples(4, 12))
    assert input_queue.dropped == 0
    assert [(await take(input_queue))[0] for _ in range(3)] == [4, 8, 12]


@pytest.mark.parametrize("pause", [3, 10, 1000])
@pytest.mark.parametrize("capacity", [1, 2, 3, 10])
async def test_a_longer_burst_after_a_pause_waits_and_loses_nothing(clock: Clock, pause: int, capacity: int) -> None:
    input_queue = queue_of(capacity, clock)
    await input_queue.put(samples(0, 4))
    await take(input_queue)
    clock.now += pause * SECONDS
    putting = await put_waits(input_queue, samples(4, 4 * 20))
    assert len(input_queue.frames) == capacity
    async with asyncio.timeout(1):
        assert [(await take(input_queue))[0] for _ in range(20)] == [4 * i for i in range(1, 21)]
        await putting
    assert input_queue.dropped == 0


async def test_a_client_in_real_time_after_a_pause_never_waits_and_loses_the_oldest(
    input_queue: InputQueue, clock: Clock
) -> None:
    await input_queue.put(samples(0, 4))
    await take(input_queue)
    clock.now += 1000 * SECONDS
    for i in range(1, 9):
        clock.now += SECONDS
        async with asyncio.timeout(1):
            await input_queue.put(samples(4 * i, 4))
    assert input_queue.dropped == 5
    assert [(await take(input_queue))[0] for _ in range(3)] == [24, 28, 32]


async def test_the_head_start_is_bounded_by_audio_and_by_time(input_queue: InputQueue, clock: Clock) -> None:
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


async def test_the_head_start_includes_dropped_frames(input_queue: InputQueue, clock: Clock) -> None:
    for _ in range(8):
        await input_queue.put(samples(0, 4))
        clock.now += SECONDS
    assert input_queue.dropped == 5
    assert input_queue.head_start() == pytest.approx(8 * SECONDS)


async def test_closing_ends_a_waiting_put(input_queue: InputQueue) -> None:
    putting = await put_waits(input_queue, samples(0, 40))
    input_queue.close()
    await putting
    assert len(await take_all(input_queue)) == 3


async def test_samples_after_the_end_are_ignored(input_queue: InputQueue) -> None:
    input_queue.close()
    input_queue.close()
    await input_queue.put(samples(0, 8))
    assert not input_queue.frames
    assert await input_queue.take() is None


async def test_a_message_without_samples_is_not_audio(input_queue: InputQueue, clock: Clock) -> None:
    arrived_at = input_queue.last_at
    clock.now += 10
    await input_queue.put(samples(0, 0))
    assert input_queue.last_at == arrived_at
