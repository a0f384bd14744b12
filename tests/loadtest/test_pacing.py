"""When users send: on the tick, late if necessary, never two at once; all after a common start."""

from __future__ import annotations

import asyncio

import pytest

from loadtest.pacing import Pace, Start, send_frames
from loadtest.plan import Starts
from loadtest.record import FRAME_SECONDS, Api, Record


def due_after(lateness: list[float], start: float = 10.0) -> list[float]:
    """When each frame, and the one after the last, is due if frame u is sent `lateness[u]` late."""
    pace = Pace(start)
    due = [pace.due]
    for late in lateness:
        pace.sent(pace.due + late)
        due.append(pace.due)
    return due


def test_frames_are_due_every_80_ms():
    assert due_after([0.0, 0.0, 0.0]) == pytest.approx([10.0, 10.08, 10.16, 10.24])


def test_a_little_late_does_not_move_the_ticks():
    assert due_after([0.05, 0.079]) == pytest.approx([10.0, 10.08, 10.16])


def test_more_than_a_tick_late_moves_the_ticks():
    assert due_after([0.1, 0.0]) == pytest.approx([10.0, 10.18, 10.26])


class SteppedClock:
    """Time passes only in a user's sleep and in the transport."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("loadtest.pacing.sleep", self.sleep)

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SteppedClock:
    return SteppedClock(monkeypatch)


async def send_all(clock: SteppedClock, takes: dict[int, float], expected: int = 5, seconds: float = 0.4) -> Record:
    """A user that starts at once and whose transport takes `takes[u]` seconds for frame u."""
    record = Record(Api.GRPC, 0, expected)

    async def send(u: int) -> None:
        clock.now += takes.get(u, 0.0)

    start = clock() + 0.02
    await send_frames(record, send, start, start + seconds, clock)
    return record


async def test_without_delays_all_frames_are_sent_on_time(clock: SteppedClock):
    record = await send_all(clock, {})
    assert record.sent == pytest.approx([u * FRAME_SECONDS for u in range(5)])
    assert record.late == pytest.approx([0.0] * 5, abs=1e-9)
    assert record.blocked == 0


async def test_a_stuck_transport_is_not_the_clients_lateness_and_is_not_caught_up(clock: SteppedClock):
    record = await send_all(clock, {1: 0.2})
    gaps = [after - before for before, after in zip(record.sent, record.sent[1:], strict=False)]
    assert min(gaps) >= FRAME_SECONDS - 1e-9
    assert record.late == pytest.approx([0.0] * len(record.late), abs=1e-9)
    assert record.blocked == pytest.approx(0.2)


async def test_frames_beyond_the_fixed_time_are_not_sent(clock: SteppedClock):
    record = await send_all(clock, {0: 0.3})
    assert len(record.sent) == 3
    assert record.sent[-1] < 0.4


async def test_the_clients_own_delay_is_its_lateness(clock: SteppedClock, monkeypatch: pytest.MonkeyPatch):
    async def oversleep(seconds: float) -> None:
        clock.now += seconds + 0.03

    monkeypatch.setattr("loadtest.pacing.sleep", oversleep)
    record = await send_all(clock, {}, expected=3)
    assert record.late == pytest.approx([0.03, 0.03, 0.03])


def starts(kind: Starts, announced: list[None] | None = None) -> Start:
    return Start(kind, 0.5, lambda: 7.0, lambda: [] if announced is None else announced.append(None))


async def test_the_first_calls_start_together_once_the_last_has_arrived_or_withdrawn():
    announced: list[None] = []
    start = starts("together", announced)
    numbers = [start.join() for _ in range(3)]
    first, second = (asyncio.create_task(start.arrive(number)) for number in numbers[:2])
    start.withdraw(numbers[2])
    await asyncio.sleep(0)
    assert not announced, "more calls may join"
    start.close()
    assert await first == await second == 7.5
    assert len(announced) == 1


async def test_the_first_calls_start_spread_over_a_frame():
    start = starts("spread")
    arriving = [asyncio.create_task(start.arrive(start.join())) for _ in range(4)]
    await asyncio.sleep(0)
    start.close()
    assert [await call for call in arriving] == pytest.approx([7.5, 7.52, 7.54, 7.56])


async def test_a_later_call_starts_when_it_is_admitted_but_not_before_the_others():
    start = starts("together")
    number = start.join()
    start.close()
    later = asyncio.create_task(start.arrive(start.join()))
    await asyncio.sleep(0)
    assert not later.done()
    assert await start.arrive(number) == await later == 7.5
    assert await start.arrive(start.join()) == 7.0


async def test_calls_that_do_not_wait_start_when_they_are_admitted():
    start = starts("admitted")
    assert await start.arrive(start.join()) == 7.0


async def test_the_start_is_set_if_all_withdraw():
    announced: list[None] = []
    start = starts("together", announced)
    start.withdraw(start.join())
    start.close()
    assert announced
