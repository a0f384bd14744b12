"""Who shares a frame with whom."""

from __future__ import annotations

import asyncio

import pytest

from gateway.engine.cohort import MANY, Cohort


class Rounds:
    """Records who was inside at the same time: a new round begins when the first comes in after the last has left."""

    def __init__(self, cohort: Cohort) -> None:
        self.cohort = cohort
        self.inside = 0
        self.rounds: list[set[str]] = []

    async def frame(self, name: str, seconds: float = 0.002, *, live: bool = True) -> None:
        async with self.cohort.frame(live):
            if self.inside == 0:
                self.rounds.append(set())
            self.inside += 1
            self.rounds[-1].add(name)
            try:
                await asyncio.sleep(seconds)
            finally:
                self.inside -= 1


async def test_conversations_that_started_apart_soon_share_every_frame():
    rounds = Rounds(Cohort())

    async def talk(name: str, wait: float) -> None:
        await asyncio.sleep(wait)
        for step in range(12):
            await rounds.frame(name, 0.001 + 0.0005 * (step % 3))

    await asyncio.gather(*(talk(str(index), 0.0007 * index) for index in range(8)))
    sizes = [len(members) for members in rounds.rounds]
    assert sum(sizes) == 8 * 12
    assert sum(sizes) / len(sizes) > 5


async def test_newcomers_wait_for_the_running_cohort_to_leave():
    rounds = Rounds(Cohort())
    first = asyncio.create_task(rounds.frame("first", 0.02))
    await asyncio.sleep(0.005)
    await asyncio.gather(rounds.frame("second"), rounds.frame("third"))
    await first
    assert rounds.rounds == [{"first"}, {"second", "third"}]


async def test_a_member_that_fails_does_not_block_the_next():
    cohort = Cohort()
    with pytest.raises(ValueError, match="broken"):
        async with cohort.frame():
            raise ValueError("broken")
    async with asyncio.timeout(0.5), cohort.frame():
        pass


async def test_a_member_that_is_cancelled_does_not_block_the_next():
    rounds = Rounds(Cohort(patience=60))
    stuck = asyncio.create_task(rounds.frame("stuck", 60))
    await asyncio.sleep(0.005)
    waiting = asyncio.create_task(rounds.frame("waiting"))
    await asyncio.sleep(0.005)
    stuck.cancel()
    await asyncio.wait_for(waiting, 0.5)


async def test_one_cancelled_while_waiting_is_not_waited_for():
    rounds = Rounds(Cohort(patience=60))
    running = asyncio.create_task(rounds.frame("running", 0.02))
    await asyncio.sleep(0.005)
    gone = asyncio.create_task(rounds.frame("gone"))
    stays = asyncio.create_task(rounds.frame("stays"))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait_for(asyncio.gather(running, stays), 0.5)
    await asyncio.wait_for(rounds.frame("later"), 0.5)
    assert rounds.rounds == [{"running"}, {"stays"}, {"later"}]


async def test_one_cancelled_in_the_very_moment_of_its_release_is_not_waited_for():
    rounds = Rounds(Cohort(patience=60))
    gone = asyncio.create_task(rounds.frame("gone"))
    await asyncio.sleep(0)  # it waits, and its release is scheduled
    asyncio.get_running_loop().call_soon(gone.cancel)  # runs right after the release, before the task does
    with pytest.raises(asyncio.CancelledError):
        await gone
    await asyncio.wait_for(rounds.frame("later"), 0.5)


async def test_a_stuck_member_is_left_behind_after_the_patience():
    cohort = Cohort(patience=0.02)
    release = asyncio.Event()

    async def stuck() -> None:
        async with cohort.frame():
            await release.wait()

    task = asyncio.create_task(stuck())
    await asyncio.sleep(0.005)
    async with asyncio.timeout(0.5), cohort.frame():
        release.set()
        await task
    async with asyncio.timeout(0.5), cohort.frame():
        pass


async def test_where_many_take_part_a_window_lets_others_join():
    rounds = Rounds(Cohort(window=0.02))
    await asyncio.gather(*(rounds.frame(str(index)) for index in range(MANY)))
    first = asyncio.create_task(rounds.frame("first"))
    await asyncio.sleep(0.005)
    await asyncio.gather(first, rounds.frame("second"))
    assert rounds.rounds[1:] == [{"first", "second"}]


async def test_where_few_take_part_nobody_waits():
    cohort = Cohort(window=60)
    for _ in range(3):
        async with asyncio.timeout(0.5):
            await asyncio.gather(*(Rounds(cohort).frame(str(index)) for index in range(MANY - 1)))


async def test_recordings_wait_for_no_window_as_none_of_them_comes_late():
    cohort = Cohort(window=60)
    for _ in range(3):
        async with asyncio.timeout(0.5):
            await asyncio.gather(*(Rounds(cohort).frame(str(index), live=False) for index in range(MANY)))


async def test_while_somebody_is_live_recordings_have_the_window_too(monkeypatch: pytest.MonkeyPatch):
    """They are not to take more of the models' time than callers who cannot wait leave them."""
    monkeypatch.setattr("gateway.engine.cohort.LIVE_SECONDS", 0.1)
    rounds = Rounds(Cohort(window=0.02))
    await asyncio.gather(rounds.frame("live"), *(rounds.frame(str(index), live=False) for index in range(MANY)))
    first = asyncio.create_task(rounds.frame("first", live=False))
    await asyncio.sleep(0.005)
    await asyncio.gather(first, *(rounds.frame(str(index), live=False) for index in range(MANY)))
    assert len(rounds.rounds) == 2
    await asyncio.sleep(0.1)
    first = asyncio.create_task(rounds.frame("first", live=False))
    await asyncio.sleep(0.005)
    await asyncio.gather(first, rounds.frame("second", live=False))
    assert rounds.rounds[2:] == [{"first"}, {"second"}]


async def test_what_is_no_frame_begins_when_the_running_one_has_ended():
    cohort = Cohort(patience=60)
    ends = [asyncio.Event(), asyncio.Event()]

    async def frame(end: asyncio.Event) -> None:
        async with cohort.frame():
            await end.wait()

    await asyncio.wait_for(cohort.between(), 0.5)
    frames = [asyncio.create_task(frame(end)) for end in ends]
    await asyncio.sleep(0.005)
    waiting = [asyncio.create_task(cohort.between()) for _ in range(2)]
    gone = asyncio.create_task(cohort.between())
    await asyncio.sleep(0.005)
    gone.cancel()
    ends[0].set()
    await frames[0]
    await asyncio.sleep(0.005)
    assert not any(task.done() for task in waiting)
    ends[1].set()
    await asyncio.wait_for(asyncio.gather(*waiting), 0.5)


async def test_what_is_no_frame_does_not_wait_for_those_that_come_after_it():
    """Frames follow one another without a gap; it has its time between two of them."""
    rounds = Rounds(Cohort())
    between: list[int] = []

    async def talk() -> None:
        for _ in range(10):
            await rounds.frame("talker", 0.002)

    async def other() -> None:
        while len(between) < 5:
            await rounds.cohort.between()
            between.append(len(rounds.rounds))
            await asyncio.sleep(0.001)

    await asyncio.wait_for(asyncio.gather(talk(), other()), 0.5)
    assert between == sorted(set(between))


async def test_a_stuck_frame_does_not_hold_up_what_is_none():
    cohort = Cohort(patience=0.02)
    stuck = asyncio.create_task(Rounds(cohort).frame("stuck", 60))
    await asyncio.sleep(0.005)
    await asyncio.wait_for(cohort.between(), 0.5)
    stuck.cancel()


async def give_up(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


class Stages:
    """Frames that give way after `before` seconds and end `after` more; who is inside, moment by moment."""

    def __init__(self, cohort: Cohort, before: float, after: float) -> None:
        self.cohort = cohort
        self.before = before
        self.after = after
        self.inside: set[str] = set()
        self.most = 0

    async def frame(self, name: str, *, live: bool = True) -> None:
        async with self.cohort.frame(live) as shared:
            self.inside.add(name)
            self.most = max(self.most, len(self.inside))
            await asyncio.sleep(self.before)
            await shared.meet()
            shared.give_way()
            await asyncio.sleep(self.after)
            self.inside.discard(name)

    async def learn(self, *, live: bool = True) -> None:
        """Enough frames to know what share of them comes behind the temporal model."""
        for _ in range(15):
            await self.frame("alone", live=live)
        self.most = 0


async def test_where_much_comes_behind_the_temporal_model_the_next_frame_begins_beside_it():
    stages = Stages(Cohort(), 0.002, 0.004)
    await stages.learn()
    stages.after = 60
    first = asyncio.create_task(stages.frame("first"))
    await asyncio.sleep(0.01)
    second = asyncio.create_task(stages.frame("second"))
    await asyncio.sleep(0.01)
    third = asyncio.create_task(stages.frame("third"))
    await asyncio.sleep(0.01)
    assert stages.inside == {"first", "second"}, "two are under way, and never more"
    first.cancel()
    await asyncio.sleep(0.01)
    assert "third" in stages.inside
    await give_up(first, second, third)


async def test_recordings_begin_beside_another_frame_only_with_somebody_live():
    stages = Stages(Cohort(), 0.002, 0.004)
    await stages.learn(live=False)
    stages.after = 60
    first = asyncio.create_task(stages.frame("first", live=False))
    await asyncio.sleep(0.01)
    recorded = asyncio.create_task(stages.frame("recorded", live=False))
    await asyncio.sleep(0.02)
    assert stages.inside == {"first"}
    live = asyncio.create_task(stages.frame("live"))
    await asyncio.sleep(0.01)
    assert stages.inside == {"first", "recorded", "live"}
    await give_up(first, recorded, live)


async def test_recordings_in_two_halves_become_one():
    """Each half would have its frames beside the other's for ever."""
    stages = Stages(Cohort(), 0.002, 0.004)
    await stages.learn(live=False)
    sizes: list[int] = []
    stages.cohort._observe = sizes.append

    async def recording(wait: float) -> None:
        await asyncio.sleep(wait)
        for _ in range(12):
            await stages.frame(str(wait), live=False)

    await asyncio.gather(*(recording(wait) for wait in 4 * [0.0] + 4 * [0.003]))
    assert sizes == [4, *(11 * [8]), 4]


async def test_nobody_overtakes_in_the_temporal_model():
    stages = Stages(Cohort(), 0.002, 0.004)
    await stages.learn()
    stages.before = 60
    first = asyncio.create_task(stages.frame("first"))
    await asyncio.sleep(0.005)
    second = asyncio.create_task(stages.frame("second"))
    await asyncio.sleep(0.02)
    assert stages.inside == {"first"}
    await give_up(first, second)


async def test_where_the_temporal_model_is_nearly_all_one_frame_is_for_all():
    stages = Stages(Cohort(), 0.005, 0.001)
    await stages.learn()
    first = asyncio.create_task(stages.frame("first"))
    await asyncio.sleep(0.002)
    await asyncio.gather(first, stages.frame("second"))
    assert stages.most == 1


async def test_another_s_prompt_begins_when_a_frame_has_given_way():
    stages = Stages(Cohort(patience=60), 0.002, 0.004)
    await stages.learn()
    stages.after = 60
    first = asyncio.create_task(stages.frame("first"))
    await asyncio.sleep(0.001)
    await asyncio.wait_for(stages.cohort.between(), 0.5)
    assert stages.inside == {"first"}
    await give_up(first)


async def test_a_frame_that_is_stuck_behind_the_temporal_model_is_left_behind_too():
    stages = Stages(Cohort(patience=0.05), 0.002, 0.004)
    await stages.learn()
    stages.after = 60
    stuck = [asyncio.create_task(stages.frame(name)) for name in ("first", "second")]
    await asyncio.sleep(0.02)
    stuck.append(asyncio.create_task(stages.frame("third")))
    await asyncio.sleep(0.15)
    stages.after = 0.001
    await asyncio.wait_for(stages.frame("later"), 0.5)
    await give_up(*stuck)
    await asyncio.wait_for(asyncio.gather(*(stages.frame(name) for name in "abc")), 0.5)
    assert stages.cohort._under_way == 0
