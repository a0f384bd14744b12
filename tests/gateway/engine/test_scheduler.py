"""When batches start, who is in them, and what happens to a member that fails or leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter

import numpy as np
import pytest

from gateway.engine import scheduler as scheduling
from gateway.engine.backend import Floats, Tokens
from gateway.engine.conversation import Conversation
from gateway.engine.fake import FakeBackend
from gateway.engine.scheduler import MANY, FrameScheduler
from gateway.errors import EngineError, EngineUnavailable

Converse = Callable[..., Conversation]
NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, (12, 1920)).astype(np.float32)


async def started(converse: Converse, count: int) -> list[Conversation]:
    conversations = [converse(seed=seed) for seed in range(count)]
    for conversation in conversations:
        await conversation.start()
    return conversations


def batches(engine: FakeBackend, stage: str = "step") -> list[set[int]]:
    """Slots of each batch that went through a stage."""
    return [set(slots) for called, slots in engine.calls if called == stage]


async def test_frames_that_are_ready_together_are_one_batch_in_every_model(converse: Converse, engine: FakeBackend):
    conversations = await started(converse, 5)
    engine.calls.clear()
    await asyncio.gather(*(conversation.step(NOISE[0]) for conversation in conversations))
    assert [(stage, len(slots)) for stage, slots in engine.calls] == [
        ("encode", 5),
        ("step", 5),
        ("depformer", 5),
        ("decode", 5),
    ]


async def test_a_conversation_takes_the_lowest_free_slot(converse: Converse):
    """Whatever the order in which slots are freed."""
    conversations = await started(converse, 5)
    for slot in (1, 4, 0):
        await next(conversation for conversation in conversations if conversation.slot == slot).close()
    assert [conversation.slot for conversation in await started(converse, 3)] == [0, 1, 4]


async def test_conversations_get_in_company_what_each_gets_alone(converse: Converse):
    """Whatever the order in which they join and leave the batches."""

    async def talk(conversation: Conversation, frames: int, wait: float = 0.0) -> list[list[int]]:
        await conversation.start()
        codes = []
        for pcm in NOISE[:frames]:
            await asyncio.sleep(wait)
            codes.append((await conversation.step(pcm)).codes.tolist())
        return codes

    alone = [await talk(converse(seed=seed), 3 + seed) for seed in range(6)]
    together = await asyncio.gather(*(talk(converse(seed=seed), 3 + seed, 0.001 * seed) for seed in range(6)))
    assert together == alone


async def test_conversations_that_started_apart_soon_share_every_batch(converse: Converse, engine: FakeBackend):
    conversations = await started(converse, 8)
    engine.delay = 0.001
    engine.calls.clear()

    async def talk(conversation: Conversation, wait: float) -> None:
        await asyncio.sleep(wait)
        for pcm in NOISE:
            await conversation.step(pcm)

    await asyncio.gather(*(talk(each, 0.0007 * index) for index, each in enumerate(conversations)))
    sizes = [len(batch) for batch in batches(engine)]
    assert sum(sizes) == 8 * len(NOISE)
    assert sum(sizes) / len(sizes) > 5


async def test_filled_positions_are_those_of_conversations(converse: Converse, scheduler: FrameScheduler):
    assert scheduler.filled(100) == 0
    conversation = converse()
    await conversation.start()
    prompt = scheduler.filled(100)
    assert prompt > 0
    everything = scheduler.filled(1)
    await conversation.step(NOISE[0])
    # A window of one position is full.
    assert scheduler.filled(100) == pytest.approx(prompt + everything / 100)
    assert scheduler.filled(1) == everything
    await conversation.close()
    assert scheduler.filled(100) == 0


async def test_a_conversation_waits_until_its_prompt_is_complete(
    converse: Converse, engine: FakeBackend, scheduler: FrameScheduler
):
    registry = scheduler._metrics.registry
    engine.delay = 0.01
    starting = asyncio.create_task(converse().start())
    await asyncio.sleep(0.005)
    assert registry.get_sample_value("personaplex_conversations_waiting") == 1
    await starting
    assert registry.get_sample_value("personaplex_conversations_waiting") == 0


async def test_frames_that_arrive_during_a_batch_are_the_next_one(converse: Converse, engine: FakeBackend):
    first, second, third = await started(converse, 3)
    engine.delay = 0.01
    engine.calls.clear()
    running = asyncio.create_task(first.step(NOISE[0]))
    await asyncio.sleep(0.005)
    await asyncio.gather(second.step(NOISE[0]), third.step(NOISE[0]))
    await running
    assert batches(engine) == [{first.slot}, {second.slot, third.slot}]


class TestMembersThatFailOrLeave:
    async def test_of_a_rejected_batch_only_the_member_at_fault_fails(self, converse: Converse, engine: FakeBackend):
        conversations = await started(converse, 4)
        plain = await started(converse, 4)
        expected = [[(await each.step(pcm)).codes.tolist() for pcm in NOISE[:2]] for each in plain]
        bad = conversations[1]
        engine.reject = {bad.slot}
        answers = await asyncio.gather(*(each.step(NOISE[0]) for each in conversations), return_exceptions=True)
        assert isinstance(answers[1], EngineError)
        engine.reject = set()
        others = [each for each in conversations if each is not bad]
        second = await asyncio.gather(*(each.step(NOISE[1]) for each in others))
        got = [[answers[i].codes.tolist(), second[j].codes.tolist()] for j, i in enumerate((0, 2, 3))]
        assert got == [expected[0], expected[2], expected[3]]

    @pytest.mark.parametrize("stage", ["encode", "step", "decode"])
    async def test_a_stage_that_was_done_before_the_rejection_is_not_done_again(
        self, converse: Converse, engine: FakeBackend, monkeypatch: pytest.MonkeyPatch, stage: str
    ):
        """A state that advances twice would change every later frame."""
        conversations = await started(converse, 3)
        plain = await started(converse, 3)
        expected = [(await each.step(NOISE[0])).codes.tolist() for each in plain]
        bad = conversations[2].slot
        run = getattr(engine, stage)

        async def rejecting(slots: Tokens, *inputs: object) -> object:
            engine.reject = {bad}
            try:
                return await run(slots, *inputs)
            finally:
                engine.reject = set()

        monkeypatch.setattr(engine, stage, rejecting)
        answers = await asyncio.gather(*(each.step(NOISE[0]) for each in conversations), return_exceptions=True)
        assert [answer.codes.tolist() for answer in answers[:2]] == expected[:2]
        assert isinstance(answers[2], EngineError)

    async def test_a_backend_that_fails_fails_every_member_and_the_next_batch_runs(
        self, converse: Converse, engine: FakeBackend
    ):
        conversations = await started(converse, 3)
        engine.down = True
        answers = await asyncio.gather(*(each.step(NOISE[0]) for each in conversations), return_exceptions=True)
        assert [type(answer) for answer in answers] == 3 * [EngineUnavailable]
        engine.down = False
        assert (await conversations[0].step(NOISE[1])).index == 1

    async def test_an_unexpected_error_does_not_stop_the_scheduler(
        self, converse: Converse, engine: FakeBackend, monkeypatch: pytest.MonkeyPatch
    ):
        (conversation,) = await started(converse, 1)

        async def broken(slots: Tokens, pcm: Floats) -> Tokens:
            raise ValueError("broken")

        with monkeypatch.context() as patch:
            patch.setattr(engine, "encode", broken)
            with pytest.raises(ValueError, match="broken"):
                await conversation.step(NOISE[0])
        assert (await conversation.step(NOISE[0])).index == 1

    async def test_a_frame_that_nobody_waits_for_any_more_is_not_run(self, converse: Converse, engine: FakeBackend):
        first, gone, stays = await started(converse, 3)
        engine.delay = 0.01
        engine.calls.clear()
        running = asyncio.create_task(first.step(NOISE[0]))
        await asyncio.sleep(0.005)
        left = asyncio.create_task(gone.step(NOISE[0]))
        waiting = asyncio.create_task(stays.step(NOISE[0]))
        await asyncio.sleep(0)
        left.cancel()
        await asyncio.gather(running, waiting)
        assert batches(engine) == [{first.slot}, {stays.slot}]

    async def test_a_member_that_leaves_in_the_middle_does_not_hold_up_the_others(
        self, converse: Converse, engine: FakeBackend
    ):
        leaver, stays = await started(converse, 2)
        engine.delay = 0.01
        left, waiting = asyncio.create_task(leaver.step(NOISE[0])), asyncio.create_task(stays.step(NOISE[0]))
        await asyncio.sleep(0.015)
        left.cancel()
        await leaver.close()
        assert (await waiting).index == 1
        assert (await stays.step(NOISE[1])).index == 2


class TestInterval:
    @pytest.fixture
    def scheduler(self, scheduler: FrameScheduler, monkeypatch: pytest.MonkeyPatch) -> FrameScheduler:
        """Its batches wait as long as `max_interval` allows."""
        monkeypatch.setattr(scheduling, "SPACING", 1e9)
        scheduler._max_interval = 0.03
        return scheduler

    async def test_after_a_large_batch_the_next_one_waits_for_more_live_frames(
        self, converse: Converse, engine: FakeBackend
    ):
        conversations = await started(converse, MANY)
        await asyncio.gather(*(each.step(NOISE[0], live=True) for each in conversations))
        engine.calls.clear()
        first = asyncio.create_task(conversations[0].step(NOISE[1], live=True))
        await asyncio.sleep(0.01)
        await asyncio.gather(first, conversations[1].step(NOISE[1], live=True))
        assert batches(engine) == [{conversations[0].slot, conversations[1].slot}]

    async def test_after_a_small_batch_none_waits(self, converse: Converse, scheduler: FrameScheduler):
        conversations = await started(converse, MANY - 1)
        scheduler._max_interval = 60
        async with asyncio.timeout(1):
            for pcm in NOISE[:3]:
                await asyncio.gather(*(each.step(pcm, live=True) for each in conversations))

    async def test_short_batches_wait_a_short_time(
        self, converse: Converse, engine: FakeBackend, scheduler: FrameScheduler, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(scheduling, "SPACING", 3.0)
        monkeypatch.setattr(scheduling, "_SMOOTHING", 1.0)
        conversations = await started(converse, MANY)
        scheduler._max_interval = 60
        engine.delay = 0.01
        began = perf_counter()
        for pcm in NOISE[:2]:
            await asyncio.gather(*(each.step(pcm, live=True) for each in conversations))
        # Four models take 40 ms or more. The second batch starts 120 ms after the first one, and takes its own time.
        assert 0.16 <= perf_counter() - began < 5

    async def test_recordings_alone_do_not_wait(self, converse: Converse, scheduler: FrameScheduler):
        conversations = await started(converse, MANY)
        scheduler._max_interval = 60
        async with asyncio.timeout(1):
            for pcm in NOISE[:3]:
                await asyncio.gather(*(each.step(pcm) for each in conversations))

    async def test_beside_live_sessions_recordings_wait_too_until_those_have_ended(
        self, converse: Converse, engine: FakeBackend, monkeypatch: pytest.MonkeyPatch
    ):
        """Recordings take no more of the models' time than live sessions leave them."""
        monkeypatch.setattr(scheduling, "LIVE_SECONDS", 0.1)
        live, *recordings = await started(converse, MANY + 1)
        await asyncio.gather(live.step(NOISE[0], live=True), *(each.step(NOISE[0]) for each in recordings))
        engine.calls.clear()
        first = asyncio.create_task(recordings[0].step(NOISE[1]))
        await asyncio.sleep(0.01)
        await asyncio.gather(first, *(each.step(NOISE[1]) for each in recordings[1:]))
        assert len(batches(engine)) == 1
        await asyncio.sleep(0.1)
        first = asyncio.create_task(recordings[0].step(NOISE[2]))
        await asyncio.sleep(0.01)
        await asyncio.gather(first, recordings[1].step(NOISE[2]))
        assert batches(engine)[1:] == [{recordings[0].slot}, {recordings[1].slot}]


class StageTimes:
    """Slows the fake backend down: `temporal` seconds in the temporal model, `behind` seconds after it."""

    def __init__(self, engine: FakeBackend, monkeypatch: pytest.MonkeyPatch, temporal: float, behind: float) -> None:
        self.temporal = temporal
        self.behind = behind
        step, depformer = engine.step, engine.depformer

        async def slow_step(*inputs: object) -> object:
            await asyncio.sleep(self.temporal)
            return await step(*inputs)

        async def slow_depformer(*inputs: object) -> object:
            await asyncio.sleep(self.behind)
            return await depformer(*inputs)

        monkeypatch.setattr(engine, "step", slow_step)
        monkeypatch.setattr(engine, "depformer", slow_depformer)


async def learn(conversation: Conversation, *, live: bool) -> None:
    """Enough batches to measure the share of time behind the temporal model."""
    for pcm in np.concatenate([NOISE, NOISE]):
        await conversation.step(pcm, live=live)


class TestOverlap:
    @pytest.mark.parametrize(
        ("temporal", "behind", "live", "overlaps"),
        [(0.002, 0.004, True, True), (0.006, 0.0, True, False), (0.002, 0.004, False, False)],
    )
    async def test_live_batches_overlap_where_much_time_is_behind_the_temporal_model(
        self,
        converse: Converse,
        engine: FakeBackend,
        monkeypatch: pytest.MonkeyPatch,
        temporal: float,
        behind: float,
        live: bool,
        overlaps: bool,
    ):
        first, second = await started(converse, 2)
        times = StageTimes(engine, monkeypatch, temporal, behind)
        await learn(first, live=live)
        times.behind = 0.2
        running = asyncio.create_task(first.step(NOISE[0], live=live))
        await asyncio.sleep(0.05)
        times.behind = 0.0
        other = asyncio.create_task(second.step(NOISE[0], live=live))
        await asyncio.wait([running, other], return_when=asyncio.FIRST_COMPLETED)
        assert running.done() is not overlaps
        await asyncio.gather(running, other)

    async def test_a_prompt_waits_for_the_batch_that_runs_and_not_for_those_after_it(
        self, converse: Converse, engine: FakeBackend
    ):
        (talking,) = await started(converse, 1)
        engine.delay = 0.005
        engine.calls.clear()

        async def talk() -> None:
            for pcm in NOISE:
                await talking.step(pcm)

        talker = asyncio.create_task(talk())
        await asyncio.sleep(0.007)
        await converse().start()
        stages = [stage for stage, _ in engine.calls]
        before = stages[: stages.index("prefill")]
        assert 1 <= before.count("decode") <= 3
        await talker
