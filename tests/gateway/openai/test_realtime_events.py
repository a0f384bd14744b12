"""Every client event of the Realtime API and its answer."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from gateway.api.openai.realtime_items import MAX_ITEMS
from tests.gateway.openai.conftest import RealtimeCaller, Server, encoded, realtime
from tests.gateway.openai.types import check_realtime_client, realtime_client_events
from tests.gateway.websocket.conftest import FRAME

DELTA = "response.output_audio.delta"
TEXT = "response.output_audio_transcript.delta"
MESSAGE = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]}
ANSWERS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "session.update": ({"session": {"type": "realtime"}}, ["session.updated"]),
    "input_audio_buffer.append": ({"audio": encoded(bytes(2 * FRAME))}, []),
    "input_audio_buffer.commit": (
        {}, ["input_audio_buffer.committed", "conversation.item.added", "conversation.item.done"],
    ),
    "input_audio_buffer.clear": ({}, ["input_audio_buffer.cleared"]),
    "conversation.item.create": (
        {"item": {"id": "item-1", **MESSAGE}}, ["conversation.item.added", "conversation.item.done"],
    ),
    "conversation.item.retrieve": ({"item_id": "item-1"}, ["conversation.item.retrieved"]),
    "conversation.item.truncate": (
        {"item_id": "item-1", "content_index": 0, "audio_end_ms": 80}, ["conversation.item.truncated"],
    ),
    "conversation.item.delete": ({"item_id": "item-1"}, ["conversation.item.deleted"]),
    "response.create": ({"response": {"metadata": {"a": "b"}}}, []),
    "response.cancel": ({}, ["error"]),
    "output_audio_buffer.clear": ({}, ["error"]),
}  # fmt: skip
"""Fields and answers while the agent is silent, in an order in which a client may send them."""


async def test_every_client_event_has_its_answer(server: Server) -> None:
    """One that a later version of openai-python adds is not in the table."""
    assert sorted(ANSWERS) == realtime_client_events()
    async with silent(server) as caller:
        for kind, (fields, answers) in ANSWERS.items():
            event = {"type": kind, "event_id": f"my {kind}", **fields}
            check_realtime_client(event)
            await caller.socket.send(json.dumps(event))
            await caller.send("conversation.item.delete", item_id=f"after {kind}")
            before = len(caller.events)
            while (await caller.receive()).get("item_id") != f"after {kind}":
                pass
            received = caller.events[before:-1]
            assert [answer["type"] for answer in received] == answers
            errors = [answer["error"] for answer in received if answer["type"] == "error"]
            assert all(error["event_id"] == f"my {kind}" for error in errors)


@asynccontextmanager
async def silent(server: Server) -> AsyncIterator[RealtimeCaller]:
    """A session whose agent does not speak yet."""
    server.engine.mute = True
    async with realtime(server) as caller:
        await caller.until("session.created")
        await caller.append(bytes(2 * FRAME))
        await started(server)
        yield caller


async def started(server: Server) -> None:
    async with asyncio.timeout(10):
        while not server.engine.prefills:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def speak(server: Server, seconds: float = 0.3) -> None:
    server.engine.mute = False
    await asyncio.sleep(seconds)
    server.engine.mute = True


class TestResponses:
    async def test_a_stretch_of_speech_is_one_response(self, server: Server) -> None:
        async with silent(server) as caller:
            await speak(server)
            done = (await caller.until("response.done"))["response"]
        kinds = [event["type"] for event in caller.events]
        opened = kinds.index("response.created")
        assert kinds[opened : opened + 4] == [
            "response.created", "response.output_item.added", "conversation.item.added", "response.content_part.added",
        ]  # fmt: skip
        assert kinds[-6:] == [
            "response.output_audio.done", "response.output_audio_transcript.done", "response.content_part.done",
            "response.output_item.done", "conversation.item.done", "response.done",
        ]  # fmt: skip
        assert set(kinds[opened + 4 : -6]) == {DELTA, TEXT}
        assert done["status"] == "completed"
        assert done["status_details"] == {"type": "completed"}
        (item,) = done["output"]
        spoken = "".join(event["delta"] for event in caller.of(TEXT))
        assert item["content"] == [{"type": "output_audio", "transcript": spoken}]
        assert spoken

    async def test_the_audio_of_a_response_is_the_agents_and_ends_in_silence(self, server: Server) -> None:
        async with silent(server) as caller:
            await speak(server)
            await caller.until("response.done")
        frames = np.frombuffer(caller.joined(DELTA), "<i2").reshape(-1, FRAME)
        loud = np.abs(frames).max(axis=1) > 3000
        assert loud[0]
        silence = len(loud) - 1 - np.flatnonzero(loud)[-1]
        # 8 frames without text or sound; the last text may come a frame after the last sound.
        assert 8 <= silence <= 9

    async def test_an_agent_that_is_silent_has_no_response(self, server: Server) -> None:
        server.engine.floor = 80 / 32768
        async with silent(server) as caller:
            await asyncio.sleep(1)
            await caller.send("conversation.item.delete", item_id="last")
            await caller.until("conversation.item.deleted")
        assert [event["type"] for event in caller.events] == ["session.created", "conversation.item.deleted"]

    async def test_usage_counts_frames_and_pieces_of_text(self, server: Server) -> None:
        async with silent(server) as caller:
            for _ in range(2):
                await speak(server)
                usage = (await caller.until("response.done"))["response"]["usage"]
                deltas = len(caller.of(DELTA))
                texts = len(caller.of(TEXT))
                spoken = usage["output_token_details"]
                assert spoken == {"audio_tokens": deltas, "text_tokens": texts}
                assert usage["output_tokens"] == deltas + texts
                assert usage["input_tokens"] == usage["input_token_details"]["audio_tokens"] >= deltas
                assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
                caller.events.clear()

    @pytest.mark.parametrize(("name", "idle"), [("pcmu", 0xFF), ("pcma", 0xD5)])
    async def test_g711_in_both_directions(self, server: Server, name: str, idle: int) -> None:
        audio_format = {"type": f"audio/{name}"}
        server.engine.mute = True
        async with realtime(server) as caller:
            session = await caller.update(audio={"input": {"format": audio_format}, "output": {"format": audio_format}})
            assert session["audio"]["input"]["format"] == session["audio"]["output"]["format"] == audio_format
            await caller.append(bytes([idle]) * 1600)
            await started(server)
            await speak(server)
            done = await caller.until("response.done")
        audio, frames = caller.joined(DELTA), done["response"]["usage"]["output_token_details"]["audio_tokens"]
        # The resampler holds some milliseconds back.
        assert len(audio) == pytest.approx(640 * frames, abs=1000)
        assert len(set(audio)) > 2
        assert set(audio[-640:]) == {idle}

    async def test_each_direction_has_a_format_of_its_own(self, server: Server) -> None:
        server.engine.mute = True
        async with realtime(server) as caller:
            session = await caller.update(audio={"output": {"format": {"type": "audio/pcmu"}}})
            assert session["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": 24000}
            await caller.append(bytes(2 * FRAME))
            await started(server)
            await speak(server)
            done = await caller.until("response.done")
        frames = done["response"]["usage"]["output_token_details"]["audio_tokens"]
        assert len(caller.joined(DELTA)) == pytest.approx(640 * frames, abs=1000)

    async def test_time_passes_without_the_clients_audio(self, server: Server) -> None:
        """As with push-to-talk: the answer comes while the client sends nothing."""
        async with silent(server) as caller:
            await asyncio.sleep(0.5)
            await speak(server)
            assert (await caller.until("response.done"))["response"]["status"] == "completed"


class TestSessionUpdate:
    async def test_only_turn_detection_changes_in_a_session(self, server: Server) -> None:
        async with silent(server) as caller:
            before = caller.events[0]["session"]
            session = await caller.update(
                instructions="Now you are Ana.",
                audio={
                    "input": {"format": {"type": "audio/pcmu"}, "turn_detection": {"type": "server_vad"}},
                    "output": {"voice": "NATM1", "format": {"type": "audio/pcma"}},
                },
            )
            assert session["audio"]["input"].pop("turn_detection")["type"] == "server_vad"
            assert before["audio"]["input"].pop("turn_detection") is None
            assert session == before
            session = await caller.update(audio={"input": {"turn_detection": None}})
            assert session["audio"]["input"]["turn_detection"] is None
        assert not caller.of("error")


class TestInputAudioBuffer:
    async def test_append_has_no_answer_and_reaches_the_model(self, server: Server, noise: Callable[..., Any]) -> None:
        async with silent(server) as caller:
            await caller.append(noise(3))
            await caller.append(noise(0.3))
            await caller.send("input_audio_buffer.clear")
            await caller.until("input_audio_buffer.cleared")
        assert [event["type"] for event in caller.events] == ["session.created", "input_audio_buffer.cleared"]

    async def test_audio_that_cannot_be_used_is_an_error(self, server: Server) -> None:
        """`AAAA` is one and a half samples."""
        async with silent(server) as caller:
            for audio in (None, 7, "%%%", "AAA", "AAAA"):
                await caller.send("input_audio_buffer.append", event_id="mine", audio=audio)
                error = await caller.error()
                assert (error["code"], error["param"], error["event_id"]) == ("invalid_value", "audio", "mine")

    async def test_commit_makes_an_item(self, server: Server) -> None:
        async with silent(server) as caller:
            await caller.send("input_audio_buffer.commit")
            done = await caller.until("conversation.item.done")
            committed, added = caller.of("input_audio_buffer.committed")[0], caller.of("conversation.item.added")[0]
        assert committed["item_id"] == added["item"]["id"] == done["item"]["id"]
        assert done["item"]["content"] == [{"type": "input_audio", "transcript": None}]

    async def test_audio_that_is_sent_again_after_a_clear_is_left_out(
        self, server: Server, noise: Callable[..., Any]
    ) -> None:
        """Pipecat does so when its own turn detection finds speech."""
        pcm = (noise(20) * 32767).astype("<i2").tobytes()
        server.runtime.manifest.sampling.text_temperature = server.runtime.manifest.sampling.audio_temperature = 0.0
        heard = []
        for repeats in (False, True):
            async with realtime(server) as caller:
                await caller.append(pcm[: 30 * FRAME])
                if repeats:
                    await caller.send("input_audio_buffer.clear")
                    await caller.append(pcm[10 * FRAME : 30 * FRAME])
                await caller.append(pcm[30 * FRAME :])
                while len(caller.of(DELTA)) < 19:
                    await caller.receive()
                heard.append([event["delta"] for event in caller.of(DELTA)[:19]])
        assert heard[0] == heard[1]


class TestTurnDetection:
    @asynccontextmanager
    async def detecting(self, server: Server, **options: Any) -> AsyncIterator[RealtimeCaller]:
        server.engine.mute = True
        async with realtime(server) as caller:
            await caller.update(audio={"input": {"turn_detection": {"type": "server_vad", **options}}})
            yield caller

    async def test_the_users_speech_is_an_item(self, server: Server, noise: Callable[..., Any]) -> None:
        async with self.detecting(server) as caller:
            await caller.append(bytes(2 * FRAME * 10))
            await caller.append(noise(10))
            await caller.append(bytes(2 * FRAME * 10))
            done = await caller.until("conversation.item.done")
        kinds = [event["type"] for event in caller.events[2:]]
        assert kinds == [
            "input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped", "input_audio_buffer.committed",
            "conversation.item.added", "conversation.item.done",
        ]  # fmt: skip
        started, stopped, committed, *_ = caller.events[2:]
        assert started["item_id"] == stopped["item_id"] == committed["item_id"] == done["item"]["id"]
        # 300 ms before the speech, and 500 ms after it.
        assert (started["audio_start_ms"], stopped["audio_end_ms"]) == (500, 2100)

    async def test_paddings_are_the_clients(self, server: Server, noise: Callable[..., Any]) -> None:
        async with self.detecting(server, prefix_padding_ms=0, silence_duration_ms=200) as caller:
            await caller.append(bytes(2 * FRAME * 10))
            await caller.append(noise(10))
            await caller.append(bytes(2 * FRAME * 10))
            stopped = await caller.until("input_audio_buffer.speech_stopped")
            (started,) = caller.of("input_audio_buffer.speech_started")
        assert (started["audio_start_ms"], stopped["audio_end_ms"]) == (800, 1800)

    async def test_nothing_is_reported_while_the_agent_speaks(self, server: Server, noise: Callable[..., Any]) -> None:
        async with self.detecting(server) as caller:
            await caller.append(bytes(2 * FRAME))
            await started(server)
            server.engine.mute = False
            await caller.until("response.created")
            await caller.append(noise(5))
            await caller.append(bytes(2 * FRAME * 8))
            # Speech that goes on after the agent's is reported then.
            await caller.append(noise(5))
            server.engine.mute = True
            await caller.until("response.done")
            assert not caller.of("input_audio_buffer.speech_started")
            await caller.append(noise(1))
            assert (await caller.until("input_audio_buffer.speech_started"))["audio_start_ms"] == 14 * 80 - 300

    async def test_without_turn_detection_nothing_is_reported(self, server: Server, noise: Callable[..., Any]) -> None:
        async with silent(server) as caller:
            await caller.append(noise(10))
            await caller.append(bytes(2 * FRAME * 8))
            await caller.send("input_audio_buffer.clear")
            await caller.until("input_audio_buffer.cleared")
        assert len(caller.events) == 2


ITEMS: list[dict[str, Any]] = [
    MESSAGE,
    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi"}]},
    {"type": "message", "role": "assistant", "content": [{"type": "output_audio", "transcript": "Hi"}]},
    {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "Be brief."}]},
    {"type": "function_call", "name": "weather", "arguments": "{}", "call_id": "c"},
    {"type": "function_call_output", "call_id": "c", "output": "rain"},
]
NO_ITEMS: list[tuple[Any, str, str]] = [
    (None, "invalid_value", "item"),
    ({}, "invalid_value", "item"),
    ({"type": "mcp_call"}, "unsupported_value", "item"),
    ({"type": "message", "role": "developer", "content": []}, "unsupported_value", "item.role"),
    ({"type": "message", "role": "user"}, "missing_required_parameter", "item.content"),
    (
        {"type": "message", "role": "user", "content": [{"type": "output_text", "text": "x"}]},
        "invalid_value", "item.content.0.type",
    ),
    ({"type": "function_call_output", "call_id": "c"}, "missing_required_parameter", "item.output"),
]  # fmt: skip


class TestItems:
    async def create(self, caller: RealtimeCaller, item: dict[str, Any], **fields: Any) -> dict[str, Any]:
        await caller.send("conversation.item.create", item=item, **fields)
        return await caller.until("conversation.item.done")

    async def test_an_item_is_added_retrieved_and_deleted(self, server: Server) -> None:
        async with realtime(server) as caller:
            for fields in ITEMS:
                item = (await self.create(caller, {"id": "mine", **fields}))["item"]
                assert item == {"id": "mine", "object": "realtime.item", "status": "completed", **fields}
                assert caller.of("conversation.item.added")[-1]["item"] == item
                await caller.send("conversation.item.retrieve", item_id="mine")
                assert (await caller.until("conversation.item.retrieved"))["item"] == item
                await caller.send("conversation.item.delete", item_id="mine")
                assert (await caller.until("conversation.item.deleted"))["item_id"] == "mine"
                await caller.send("conversation.item.retrieve", event_id="e", item_id="mine")
                error = await caller.error()
                assert (error["code"], error["event_id"]) == ("item_retrieve_invalid_item_id", "e")

    async def test_items_have_a_place(self, server: Server) -> None:
        async with realtime(server) as caller:
            first = await self.create(caller, MESSAGE)
            second = await self.create(caller, MESSAGE)
            root = await self.create(caller, MESSAGE, previous_item_id="root")
            between = await self.create(caller, MESSAGE, previous_item_id=first["item"]["id"])
            last = await self.create(caller, MESSAGE, previous_item_id="unknown")
        assert "previous_item_id" not in first
        assert second["previous_item_id"] == first["item"]["id"]
        assert "previous_item_id" not in root
        assert between["previous_item_id"] == first["item"]["id"]
        assert last["previous_item_id"] == second["item"]["id"]

    async def test_audio_and_images_are_not_kept(self, server: Server) -> None:
        content = [{"type": "input_audio", "audio": "AAAA"}, {"type": "input_image", "image_url": "data:x"}]
        async with realtime(server) as caller:
            item = (await self.create(caller, {"type": "message", "role": "user", "content": content}))["item"]
        assert item["content"] == [{"type": "input_audio", "transcript": None}, {"type": "input_image"}]

    async def test_the_oldest_items_are_forgotten(self, server: Server) -> None:
        async with realtime(server) as caller:
            for number in range(MAX_ITEMS + 1):
                await caller.send("conversation.item.create", item={**MESSAGE, "id": f"item {number}"})
            await caller.send("conversation.item.retrieve", item_id="item 1")
            await caller.until("conversation.item.retrieved")
            assert len(caller.of("conversation.item.done")) == MAX_ITEMS + 1
            await caller.send("conversation.item.retrieve", item_id="item 0")
            assert (await caller.error())["code"] == "item_retrieve_invalid_item_id"

    async def test_items_that_are_none_are_errors(self, server: Server) -> None:
        async with realtime(server) as caller:
            for item, code, param in NO_ITEMS:
                await caller.send("conversation.item.create", event_id="e", item=item)
                error = await caller.error()
                assert (error["code"], error["param"], error["event_id"]) == (code, param, "e")

    async def test_truncate_is_always_acknowledged(self, server: Server) -> None:
        """Pipecat's call would end with an error."""
        asked = {"item_id": "unknown", "content_index": 3, "audio_end_ms": 10**9}
        async with silent(server) as caller:
            await caller.send("conversation.item.truncate", **asked)
            assert (await caller.until("conversation.item.truncated")).items() >= asked.items()
            await speak(server)
            await caller.until("response.done")
            item_id = caller.of("conversation.item.done")[0]["item"]["id"]
            await caller.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=100)
            await caller.until("conversation.item.truncated")
            await caller.send("conversation.item.retrieve", item_id=item_id)
            item = (await caller.until("conversation.item.retrieved"))["item"]
        assert item["content"] == [{"type": "output_audio"}]

    async def test_events_without_an_item_are_errors(self, server: Server) -> None:
        async with realtime(server) as caller:
            for kind in ("truncate", "delete", "retrieve"):
                await caller.send(f"conversation.item.{kind}")
                error = await caller.error()
                assert (error["code"], error["param"]) == ("missing_required_parameter", "item_id")


class TestResponseEvents:
    async def test_the_next_response_carries_the_metadata_of_the_request(self, server: Server) -> None:
        """LiveKit waits for it."""
        async with silent(server) as caller:
            metadata = {"client_event_id": "mine"}
            await caller.send("response.create", response={"metadata": metadata, "instructions": "Greet the caller."})
            await caller.send("response.create", response=None)
            await caller.send("response.create", response={"metadata": metadata})
            # Its answer says that the requests before it have been read.
            await caller.send("conversation.item.truncate", item_id="unknown", content_index=0, audio_end_ms=0)
            await caller.until("conversation.item.truncated")
            for expected in (metadata, None):
                await speak(server)
                done = await caller.until("response.done")
                assert done["response"].get("metadata") == expected
        created = [event["response"].get("metadata") for event in caller.of("response.created")]
        assert created == [metadata, None]
        assert not caller.of("error")

    async def test_a_request_starts_the_session_without_audio(self, server: Server) -> None:
        async with realtime(server) as caller:
            await caller.send("response.create")
            assert (await caller.until("response.created"))["response"]["status"] == "in_progress"

    async def test_metadata_that_is_none_is_an_error(self, server: Server) -> None:
        many = dict.fromkeys(map(str, range(17)), "x")
        async with realtime(server) as caller:
            for metadata, param in (({"x": 7}, "response.metadata.x"), (many, "response.metadata")):
                await caller.send("response.create", event_id="e", response={"metadata": metadata})
                error = await caller.error()
                assert (error["code"], error["param"], error["event_id"]) == ("invalid_value", param, "e")

    async def test_cancel_closes_the_response_and_the_agent_speaks_on_in_another(self, server: Server) -> None:
        async with silent(server) as caller:
            server.engine.mute = False
            first = (await caller.until("response.created"))["response"]["id"]
            await caller.until(DELTA)
            await caller.send("response.cancel", response_id=first)
            done = (await caller.until("response.done"))["response"]
            assert (done["id"], done["status"]) == (first, "cancelled")
            assert done["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
            assert done["output"][0]["status"] == "incomplete"
            second = (await caller.until("response.created"))["response"]["id"]
            await caller.until(DELTA)
            await caller.send("response.cancel")
            assert (await caller.until("response.done"))["response"]["id"] == second

    async def test_a_cancel_in_the_silence_after_the_speech_opens_no_other_response(self, server: Server) -> None:
        async with silent(server) as caller:
            await speak(server)
            while np.frombuffer(base64.b64decode((await caller.until(DELTA))["delta"]), "<i2").any():
                pass
            await caller.send("response.cancel")
            await caller.until("response.done")
            await asyncio.sleep(0.5)
            await caller.send("input_audio_buffer.clear")
            await caller.until("input_audio_buffer.cleared")
        assert len(caller.of("response.created")) == 1

    @pytest.mark.parametrize("fields", [{}, {"response_id": "resp_other"}])
    async def test_nothing_to_cancel_is_an_error_that_clients_ignore(
        self, server: Server, fields: dict[str, str]
    ) -> None:
        async with silent(server) as caller:
            if fields:
                server.engine.mute = False
                await caller.until("response.created")
            await caller.send("response.cancel", event_id="e", **fields)
            error = await caller.error()
        assert error["code"] == "response_cancel_not_active"
        assert error["message"].startswith("Cancellation failed")
        assert error["event_id"] == "e"

    async def test_clearing_the_output_names_the_latest_response(self, server: Server) -> None:
        async with silent(server) as caller:
            await caller.send("output_audio_buffer.clear")
            assert (await caller.error())["code"] == "response_cancel_not_active"
            await speak(server)
            await caller.until("response.done")
            await caller.send("output_audio_buffer.clear")
            cleared = await caller.until("output_audio_buffer.cleared")
        assert cleared["response_id"] == caller.of("response.created")[0]["response"]["id"]


UNUSABLE: list[tuple[str | bytes, str, str | None, str | None]] = [
    ("not JSON", "invalid_json", None, None),
    (b"\0\0", "invalid_json", None, None),
    ('{"type": 5, "event_id": "x"}', "unknown_event", "type", "x"),
    ('{"type": "session.start", "event_id": "x"}', "unknown_event", "type", "x"),
    ('{"type": "session.update", "event_id": 7}', "invalid_value", "event_id", None),
]


async def test_messages_that_cannot_be_used_are_errors_and_the_call_goes_on(server: Server) -> None:
    async with silent(server) as caller:
        for message, code, param, event_id in UNUSABLE:
            await caller.socket.send(message)
            error = await caller.error()
            assert (error["code"], error.get("param"), error.get("event_id")) == (code, param, event_id)
        await speak(server)
        await caller.until("response.done")
