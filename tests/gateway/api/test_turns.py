"""Turn sessions: conversations that continue over several REST requests."""

from __future__ import annotations

import asyncio
import base64
import threading

import numpy as np
import pytest

from gateway.audio.decode import decode
from gateway.audio.wav import wav
from gateway.engine.sampling import SamplingParams
from gateway.errors import UnknownConversation
from gateway.session import request as question
from gateway.session.caller import Caller
from gateway.session.persona import Persona
from gateway.telemetry.metrics import Api
from tests.series import total

SAMPLING = SamplingParams(seed=1, audio_temperature=0.8, audio_top_k=250, text_temperature=0.7, text_top_k=25)


def part(audio: bytes, first: int, count: int) -> bytes:
    """Frames first .. first + count - 1 of a recording."""
    pcm = decode(audio, 24_000, 60.0)
    return wav(pcm[first * 1920 : (first + count) * 1920], 24_000)


async def test_two_turns_equal_one_request_with_both_recordings(ask, recording):
    joined = recording(frames=9)
    fields = {"include": ["tokens"], "seed": 4}
    whole = (await ask(audio=part(joined, 0, 9), max_steps=9, **fields)).json()
    one = (await ask(audio=part(joined, 0, 4), max_steps=4, keep=True, **fields)).json()
    two = (
        await ask(audio=part(joined, 4, 5), max_steps=5, conversation_id=one["conversation_id"], include=["tokens"])
    ).json()
    for name in ("text_tokens", "agent_codes", "user_codes"):
        assert one[name] + two[name] == whole[name], name
    pcm = [decode(base64.b64decode(answer["audio"]), 24_000, 60.0) for answer in (one, two, whole)]
    np.testing.assert_array_equal(np.concatenate(pcm[:2]), pcm[2])
    assert two["conversation_id"] == one["conversation_id"]
    assert two["timings"]["stages"]["temporal"]["median_ms"] > 0


async def test_a_turn_session_holds_its_slot_until_it_is_deleted(ask, client, app):
    kept = [(await ask(keep=True)).json()["conversation_id"] for _ in range(2)]
    refused = await ask()
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "7"
    assert (await client.delete(f"/v1/conversations/{kept[0]}")).status_code == 204
    assert (await ask()).status_code == 200
    again = await ask(conversation_id=kept[0])
    assert again.status_code == 404
    assert "it never existed, or it has ended" in again.json()["detail"]
    assert (await client.delete(f"/v1/conversations/{kept[0]}")).status_code == 404
    assert app.state.runtime.admission.taken == 1


async def test_keep_false_ends_it_after_the_turn(ask, app):
    name = (await ask(keep=True)).json()["conversation_id"]
    last = (await ask(conversation_id=name, keep=False)).json()
    assert "conversation_id" not in last
    assert app.state.runtime.admission.taken == 0
    assert (await ask(conversation_id=name)).status_code == 404


async def test_a_turn_session_ends_after_its_idle_time(ask, app):
    app.state.runtime.turn_sessions.idle_seconds = 0.05
    name = (await ask(keep=True)).json()["conversation_id"]
    await asyncio.sleep(0.2)
    assert app.state.runtime.admission.taken == 0
    assert (await ask(conversation_id=name)).status_code == 404
    assert total(app.state.runtime.metrics, "personaplex_ended_total", api="rest", reason="idle") == 1


async def test_a_turn_session_ends_after_its_maximum_duration(ask, app):
    app.state.runtime.turn_sessions.max_seconds = 0.3
    name = (await ask(keep=True)).json()["conversation_id"]
    async with asyncio.timeout(5):
        while (answer := await ask(conversation_id=name)).status_code == 200:
            pass
    assert answer.status_code == 404
    async with asyncio.timeout(5):
        await app.state.runtime.admission.empty.wait()
    assert total(app.state.runtime.metrics, "personaplex_ended_total", api="rest", reason="max_duration") == 1


@pytest.mark.parametrize("how", ["deleted", "idle", "drained", "its last turn"])
async def test_a_turn_session_may_end_while_the_next_turn_is_uploaded(ask, client, app, engine, monkeypatch, how):
    runtime = app.state.runtime
    runtime.turn_sessions.idle_seconds = 0.3 if how == "idle" else 60
    name = (await ask(keep=True)).json()["conversation_id"]
    began, go_on = threading.Event(), threading.Event()

    def slowly(*args):
        began.set()
        go_on.wait(10)
        return decode(*args)

    monkeypatch.setattr(question, "decode", slowly)
    turn = asyncio.create_task(ask(conversation_id=name))
    await asyncio.to_thread(began.wait, 10)
    monkeypatch.setattr(question, "decode", decode)
    if how == "deleted":
        assert (await client.delete(f"/v1/conversations/{name}")).status_code == 204
    elif how == "drained":
        await runtime.sessions.drain()
    elif how == "its last turn":
        assert (await ask(conversation_id=name, keep=False)).status_code == 200
    async with asyncio.timeout(10):
        await runtime.admission.empty.wait()
    go_on.set()
    answer = await turn
    assert answer.status_code == 404
    assert "it never existed, or it has ended" in answer.json()["detail"]
    assert runtime.admission.taken == 0
    assert engine.opened == engine.closed


async def test_no_turn_begins_while_the_session_is_ending(app):
    """As when both are due in the same pass of the event loop."""
    kept = app.state.runtime.turn_sessions.new(Persona("NATF0", ""), SAMPLING, Caller(Api.REST))
    async with kept.turn():
        pass
    ending = asyncio.create_task(app.state.runtime.turn_sessions.end_waiting())
    await asyncio.sleep(0)
    with pytest.raises(UnknownConversation):
        async with kept.turn():
            pytest.fail("it has ended")
    await ending


async def test_each_turn_has_an_rtf_and_only_the_first_a_time_to_first_audio(ask, client, app):
    count = app.state.runtime.metrics.registry.get_sample_value
    name = (await ask(keep=True)).json()["conversation_id"]
    for turn in range(1, 4):
        assert count("personaplex_rtf_count") == turn - 1
        later = await ask(conversation_id=name)
        assert later.json()["timings"]["time_to_first_audio_ms"] > 0
    await client.delete(f"/v1/conversations/{name}")
    assert count("personaplex_rtf_count") == 4
    assert count("personaplex_time_to_first_audio_seconds_count") == count("personaplex_setup_seconds_count") == 1


async def test_one_turn_at_a_time(ask, client, engine):
    name = (await ask(keep=True)).json()["conversation_id"]
    engine.delay = 0.02
    first = asyncio.create_task(ask(conversation_id=name))
    await asyncio.sleep(0.05)
    second = await ask(conversation_id=name)
    assert second.status_code == 409
    assert (await client.delete(f"/v1/conversations/{name}")).status_code == 409
    assert (await first).status_code == 200


async def test_voice_prompt_and_sampling_cannot_change(ask):
    name = (await ask(keep=True)).json()["conversation_id"]
    for change in ({"voice": "NATM1"}, {"text_prompt": "You are Bob."}, {"seed": 3}, {"greedy": True}):
        answer = await ask(conversation_id=name, **change)
        assert answer.status_code == 422
        assert "cannot change in a conversation that is under way" in answer.json()["detail"]


async def test_a_failure_ends_the_session_and_frees_the_slot(ask, engine, app):
    name = (await ask(keep=True)).json()["conversation_id"]
    engine.down = True
    assert (await ask(conversation_id=name)).status_code == 503
    engine.down = False
    assert (await ask(conversation_id=name)).status_code == 404
    assert app.state.runtime.admission.taken == 0


async def test_a_rejected_first_turn_leaves_no_session(ask, app):
    kept = [(await ask(keep=True)).json()["conversation_id"] for _ in range(2)]
    assert len(kept) == 2
    assert (await ask(keep=True)).status_code == 503
    assert app.state.runtime.admission.taken == 2


async def test_a_streamed_response_states_its_conversation_id(client, recording, app):
    form = {"keep": "true", "stream": "true", "max_steps": "3"}
    files = {"audio": ("user.wav", recording(), "audio/wav")}
    answer = await client.post("/v1/respond", files=files, data=form)
    name = answer.headers["x-personaplex-conversation"]
    assert (await client.delete(f"/v1/conversations/{name}")).status_code == 204
    assert app.state.runtime.admission.taken == 0
