"""Resources of a conversation: held while it lasts, released in the right order."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from gateway.engine.fake import FakeBackend
from gateway.engine.sampling import SamplingParams
from gateway.errors import AtCapacity, AudioError, EngineUnavailable, PromptTooLong, SlowClient, UnknownVoice
from gateway.manifest import Manifest
from gateway.session.caller import Caller
from gateway.session.leases import ConversationLease
from gateway.session.persona import Persona
from gateway.session.recorded import RecordedResponse
from gateway.session.runtime import Runtime
from gateway.settings import Settings
from gateway.telemetry.metrics import Api, Metrics
from tests.series import total

SAMPLING = SamplingParams(seed=1, audio_temperature=0.8, audio_top_k=250, text_temperature=0.7, text_top_k=25)
CALLER = Caller(Api.REST)
ANA = Persona("NATF0", "You are Ana.")
NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, (6, 1920)).astype(np.float32)


@pytest.fixture
def runtime(models: Path, manifest: Manifest, engine: FakeBackend) -> Runtime:
    return Runtime(Settings(models=models, release_wait=0.05), manifest, engine, Metrics(manifest.slots))


def ended(runtime: Runtime, reason: str) -> float:
    return total(runtime.metrics, "personaplex_ended_total", api="rest", reason=reason)


async def talk(call: ConversationLease, frames: int = 6) -> list[list[int]]:
    agent = [await call.conversation.start()]
    for pcm in NOISE[:frames]:
        agent.append(await call.conversation.step(pcm))
    return [frame.codes.tolist() for frame in agent]


async def test_a_call_holds_a_slot_and_gives_it_back(runtime: Runtime, engine: FakeBackend):
    async with runtime.leases.open(ANA, SAMPLING, CALLER) as call:
        assert runtime.admission.taken == 1
        await talk(call)
    assert runtime.admission.taken == 0
    assert (engine.opened, engine.closed) == (1, 1)
    assert ended(runtime, "completed") == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (EngineUnavailable("gone"), "engine"),
        (AudioError("not audio"), "client_error"),
        (SlowClient("the answer was not read"), "slow_client"),
        (ValueError("ours"), "error"),
        (asyncio.CancelledError(), "disconnected"),
    ],
)
async def test_however_a_call_ends_it_is_released_and_counted(
    runtime: Runtime, engine: FakeBackend, error: BaseException, reason: str
):
    with pytest.raises(type(error)):
        async with runtime.leases.open(ANA, SAMPLING, CALLER):
            raise error
    assert runtime.admission.taken == 0
    assert engine.opened == engine.closed
    assert ended(runtime, reason) == 1


@pytest.mark.parametrize(
    ("persona", "error"),
    [(Persona("NOBODY", ""), UnknownVoice), (Persona("NATF0", "work " * 300), PromptTooLong)],
)
async def test_what_can_be_refused_is_refused_before_a_slot_is_taken(
    runtime: Runtime, engine: FakeBackend, persona: Persona, error: type[Exception]
):
    async with runtime.leases.open(ANA, SAMPLING, CALLER), runtime.leases.open(ANA, SAMPLING, CALLER):
        with pytest.raises(error):
            async with runtime.leases.open(persona, SAMPLING, CALLER):
                pass
        assert runtime.admission.taken == 2


async def test_a_third_call_on_two_slots_opens_nothing(runtime: Runtime, engine: FakeBackend):
    async with runtime.leases.open(ANA, SAMPLING, CALLER), runtime.leases.open(ANA, SAMPLING, CALLER):
        with pytest.raises(AtCapacity):
            async with runtime.leases.open(ANA, SAMPLING, CALLER):
                pass
        assert runtime.admission.taken == 2
    assert runtime.admission.taken == 0
    assert engine.calls == []


async def test_a_slot_is_not_free_before_its_rows_are(
    runtime: Runtime, engine: FakeBackend, monkeypatch: pytest.MonkeyPatch
):
    released = asyncio.Event()

    async def release(slot: int) -> None:
        await released.wait()

    monkeypatch.setattr(engine, "release", release)
    async with asyncio.timeout(1):
        async with runtime.leases.open(ANA, SAMPLING, CALLER):
            pass
    assert runtime.admission.taken == 1  # the lease has ended after `release_wait`; the slot is not free yet
    released.set()
    await runtime.close()
    assert runtime.admission.taken == 0


async def test_a_call_cancelled_while_it_is_released_is_released_all_the_same(runtime: Runtime, engine: FakeBackend):
    runtime.leases._release_wait = 60

    async def run() -> None:
        async with runtime.leases.open(ANA, SAMPLING, CALLER) as call:
            await call.conversation.start()
            engine.delay = 0.05

    task = asyncio.create_task(run())
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await runtime.close()
    assert runtime.admission.taken == 0
    assert (engine.opened, engine.closed) == (1, 1)


async def test_a_recorded_voice_is_encoded_in_the_slot_that_then_starts_from_clean_state(
    runtime: Runtime, engine: FakeBackend
):
    async with runtime.leases.open(Persona(NOISE.reshape(-1)[:10_000], ""), SAMPLING, CALLER) as call:
        await call.conversation.start()
    columns, embeddings = engine.prefills[-1].steps, engine.prefills[-1].embeddings
    assert len(embeddings) == 0
    assert len(columns) == 6 + 12  # 10,000 samples are 5.2 frames
    assert [slots for stage, slots in engine.calls if stage == "open"] == [[0], [0]]
    assert (engine.opened, engine.closed) == (1, 1)


async def test_an_engine_that_fails_while_a_voice_is_encoded_leaves_nothing_open(runtime: Runtime, engine: FakeBackend):
    engine.down = True
    with pytest.raises(EngineUnavailable):
        async with runtime.leases.open(Persona(NOISE.reshape(-1), ""), SAMPLING, CALLER):
            pass
    assert runtime.admission.taken == 0
    assert (engine.opened, engine.closed) == (1, 1)
    assert ended(runtime, "engine") == 1


async def test_conversations_at_once_give_what_each_gives_alone(models: Path, manifest: Manifest, engine: FakeBackend):
    manifest = manifest.model_copy(update={"slots": 6})
    runtime = Runtime(Settings(models=models), manifest, engine, Metrics(6))

    async def run(seed: int) -> list[list[int]]:
        sampling = SamplingParams(seed, 0.8, 250, 0.7, 25)
        async with runtime.leases.open(
            Persona("NATM1" if seed % 2 else "NATF0", f"You are {seed}."), sampling, CALLER
        ) as call:
            reply = RecordedResponse(call.conversation, NOISE.reshape(-1) * np.float32(seed / 8), manifest, 12)
            return [frame.codes.tolist() async for frame in reply.frames()]

    alone = [await run(seed) for seed in range(6)]
    assert await asyncio.gather(*(run(seed) for seed in range(6))) == alone
    assert alone[0] != alone[2]
