"""Calls of every service: audio, marks, keys, ends, refusals."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from time import monotonic
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from websockets.exceptions import InvalidStatus

from gateway.audio.duplex import DuplexCodec
from tests.gateway.telephony.conftest import Call, Serve, Server, call
from tests.gateway.telephony.phones import PHONES, Answer, Asterisk, Audio, Phone, PlainAsterisk, Telnyx, Twilio, Vonage
from tests.gateway.websocket.conftest import FRAME
from tests.series import total

Noise = Callable[..., NDArray[np.float32]]


def codec(phone: Phone) -> DuplexCodec:
    encoding: Any = phone.encoding if phone.encoding in ("ulaw", "alaw") else "pcm_s16le"
    return DuplexCodec(encoding, phone.rate, 24_000)


FORMATS = [(kind, *form) for kind in PHONES for form in kind.formats]


@pytest.mark.parametrize(("kind", "encoding", "rate"), FORMATS, ids=lambda value: getattr(value, "__name__", value))
async def test_a_call_equals_a_recorded_run_on_the_decoded_audio(
    server: Server, noise: Noise, kind: type[Phone], encoding: str, rate: int
) -> None:
    phone = kind(encoding, rate)
    sent = codec(phone).encode(noise(12.5))
    sent = sent[: len(sent) - len(sent) % phone.frame_bytes]
    decoding = codec(phone)
    heard = np.concatenate([decoding.decode(sent), decoding.finish_input()])
    frames = len(heard) // FRAME
    answer = await server.offline(heard, frames, seed=7, voice="NATM1", text_prompt="")
    expected, encoding_agent = b"", codec(phone)
    for frame in answer["audio"].reshape(-1, FRAME):
        expected += encoding_agent.encode(frame.astype(np.float32) / 32767)
    query = "?seed=7&voice=NATM1&text_prompt=" if isinstance(phone, Asterisk) else ""
    parameters = {} if query else {"seed": "7", "voice": "NATM1", "text_prompt": ""}
    async with call(server, phone, query) as caller:
        await caller.begin(**parameters)
        await caller.speak(sent)
        got = await caller.until_audio((frames - 1) * 0.08)
        await caller.hang_up()
    size = (frames - 1) * 4 * phone.frame_bytes
    difference = decoded(phone, got[:size]) - decoded(phone, expected[:size])
    # The WAV of the recorded run is rounded to 16 bits once more, which moves some G.711 samples by a step.
    assert np.abs(difference).max() <= (2 / 32768 if phone.frame_bytes > 160 else 1 / 32)
    assert np.abs(difference).mean() < 2e-4


def decoded(phone: Phone, data: bytes) -> NDArray[np.float32]:
    return codec(phone).decode(data)


async def test_24_khz_passes_without_change(server: Server, noise: Noise) -> None:
    """The agent's samples of the fake engine are 16-bit values of a constant per frame."""
    for phone in (Vonage("pcm_s16le", 24_000), Asterisk("slin24", 24_000)):
        pcm = np.round(noise(5) * 32767).astype("<i2")
        async with call(server, phone, "?seed=3") as caller:
            await caller.begin()
            await caller.speak(pcm.tobytes())
            got = np.frombuffer(await caller.until_audio(0.4), "<i2").reshape(-1, FRAME)
            await caller.hang_up()
        answer = await server.offline(pcm.astype(np.float32) / 32768, 5, seed=3)
        assert np.array_equal(got[:5], answer["audio"].reshape(-1, FRAME)[:5])


async def test_audio_comes_in_whole_frames_of_20_ms_in_real_time(serve: Serve, phone: Phone) -> None:
    async with serve(live_speed=1) as server, call(server, phone) as caller:
        began = monotonic()
        await caller.begin()
        speaking = asyncio.create_task(in_real_time(caller, 1.2))
        await caller.until_audio(0.02)
        assert monotonic() - began < 1
        await caller.until_audio(1.1)
        assert 0.8 < monotonic() - began < 3
        await speaking
        await caller.hang_up()
    sizes = [len(one.data) for one in caller.received if isinstance(one, Audio)]
    assert all(size % phone.frame_bytes == 0 for size in sizes)
    if not isinstance(phone, Vonage):
        assert sizes[1:-1] == [4 * phone.frame_bytes] * len(sizes[1:-1])


async def in_real_time(caller: Call, seconds: float) -> None:
    due = monotonic()
    for _ in range(round(seconds * 50)):
        await caller.send(caller.phone.media(bytes(caller.phone.frame_bytes)))
        due += 0.02
        await asyncio.sleep(max(due - monotonic(), 0))


async def test_silence_takes_the_place_of_audio_that_does_not_come(serve: Serve, any_phone: Phone) -> None:
    async with serve(live_speed=1) as server, call(server, any_phone) as caller:
        await caller.begin()
        await caller.speak(bytes(4 * any_phone.frame_bytes))
        await caller.until_audio(0.8)
        await caller.hang_up()


async def test_marks_and_keys(serve: Serve, phone: Phone, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "gateway.api.telephony.call")
    async with serve(live_speed=4) as server:
        async with call(server, phone) as caller:
            await caller.begin()
            speaking = asyncio.create_task(in_real_time(caller, 2))
            for number in range(2):
                while len(caller.marks) <= number and len(caller.audio) < 100 * phone.frame_bytes:
                    await caller.receive()
                if caller.marks:
                    await caller.send(phone.played(caller.marks[-1]))
            await caller.send(phone.played("unknown"), phone.dtmf("5"), phone.dtmf("#"), *phone.others())
            await speaking
            await caller.hang_up()
        await server.until_free()
    # One after agent frame 0, and then one after every twelfth.
    assert caller.marks[:2] == ([] if isinstance(phone, PlainAsterisk) else ["0", "12"])
    messages = [record.getMessage() for record in caplog.records]
    assert sum("key '5'" in message for message in messages) == 1
    assert sum("key '#'" in message for message in messages) == 1
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert any("playback lag" in message for message in messages)


@pytest.mark.parametrize("kind", [Asterisk, PlainAsterisk])
async def test_asterisk_answers_when_the_models_are_ready(server: Server, kind: type[Asterisk]) -> None:
    async with call(server, kind()) as caller:
        await caller.begin()
        assert isinstance(await caller.receive(), Answer)
        assert isinstance(await caller.receive(), Audio)


async def test_asterisk_gets_no_audio_while_its_queue_is_full(serve: Serve) -> None:
    phone = Asterisk()
    async with serve(live_speed=1) as server, call(server, phone) as caller:
        await caller.begin()
        await caller.until_audio(0.08)
        await caller.send(phone.event("MEDIA_XOFF"))
        await asyncio.sleep(0.5)
        await caller.send(phone.event("MEDIA_XON"))
        before = len(caller.audio)
        began = monotonic()
        await caller.until_audio(1)
        # Half a second of audio is missing.
        assert before < 0.3 * 50 * phone.frame_bytes
        assert monotonic() - began > 0.5


async def test_chunks_of_telnyx_are_sorted(server: Server, noise: Noise) -> None:
    """One comes twice, one never."""
    answers = []
    for order in ([0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13], [0, 2, 1, 1, 4, 3, 2, 6, 9, 7, 8, 10, 11, 13, 12]):
        phone = Telnyx("pcm_s16le", 24_000)
        data = (noise(4, seed=5) * 32767).astype("<i2").tobytes()
        pieces = [data[at : at + 960] for at in range(0, len(data), 960)]
        messages = [phone.media(piece) for piece in pieces]
        async with call(server, phone) as caller:
            await caller.begin(seed="1")
            await caller.send(*(messages[number] for number in order))
            await caller.hang_up()
        answers.append(caller.audio)
    assert answers[0] == answers[1]
    assert len(answers[0]) >= 4 * 3840


async def test_the_end_of_the_call_frees_the_slot_and_closes(
    server: Server, phone: Phone, caplog: pytest.LogCaptureFixture
) -> None:
    """Metrics and log name the service."""
    caplog.set_level(logging.INFO, "gateway.session.record")
    async with call(server, phone) as caller:
        await caller.begin()
        await caller.speak(bytes(20 * phone.frame_bytes))
        await caller.until_audio(0.16)
        began = monotonic()
        await caller.hang_up()
        await server.until_free()
        assert monotonic() - began < 1
    if phone.stop() is not None:
        assert caller.code == 1000
    assert total(server.runtime.metrics, "personaplex_ended_total", api=phone.service) == 1
    assert [record.__dict__["api"] for record in caplog.records] == [phone.service] * 2


async def test_a_call_that_ends_before_its_start_is_closed(server: Server) -> None:
    for phone in (kind() for kind in PHONES):
        if (stop := phone.stop()) is not None:
            async with call(server, phone) as caller:
                await caller.send(stop)
                await caller.until_closed()
            assert caller.code == 1000
    await server.until_free()
    assert server.engine.opened == 0


async def test_a_lost_connection_frees_the_slot(server: Server, any_phone: Phone) -> None:
    async with call(server, any_phone) as caller:
        await caller.begin()
        await caller.until_audio(0.02)
        caller.socket.transport.abort()
        began = monotonic()
        await server.until_free()
        assert monotonic() - began < 1


async def test_a_call_without_audio_ends(serve: Serve, any_phone: Phone) -> None:
    async with serve(idle_seconds=0.3, live_speed=1) as server, call(server, any_phone) as caller:
        await caller.begin()
        await caller.until_closed()
        assert (caller.code, "no audio" in caller.reason) == (1001, True)
        await server.until_free()


async def test_the_longest_duration_ends_a_call(serve: Serve, any_phone: Phone) -> None:
    async with serve(max_call_seconds=0.4, live_speed=1) as server, call(server, any_phone) as caller:
        await caller.begin()
        await caller.until_closed()
    assert (caller.code, "longest duration" in caller.reason) == (1001, True)


async def test_a_drain_ends_calls(serve: Serve, any_phone: Phone) -> None:
    async with serve(drain_seconds=0.2, live_speed=1) as server, call(server, any_phone) as caller:
        await caller.begin()
        await caller.until_audio(0.02)
        draining = asyncio.create_task(server.runtime.sessions.drain())
        await caller.until_closed()
        assert caller.code == 1012
        await draining


async def test_a_failing_engine_ends_a_call(server: Server, any_phone: Phone) -> None:
    async with call(server, any_phone) as caller:
        await caller.begin()
        await caller.until_audio(0.02)
        server.engine.down = True
        await caller.speak(bytes(8 * any_phone.frame_bytes))
        await caller.until_closed()
        assert caller.code == 1011
        server.engine.down = False


async def refusal(server: Server, phone: Phone, **options: Any) -> tuple[int, dict[str, Any], Any]:
    """Status, problem and headers of an opening handshake that is refused."""
    with pytest.raises(InvalidStatus) as caught:
        async with server.connect(phone.path, subprotocols=phone.subprotocols, **options):
            pass
    response = caught.value.response
    return response.status_code, json.loads(response.body), response.headers


async def test_a_full_server_refuses_the_handshake(serve: Serve, phone: Phone) -> None:
    """Before the call starts, so that the service goes on with the call."""
    async with serve(slots=1) as server:
        async with call(server, phone) as first:
            # The slot is taken before the start.
            status, problem, headers = await refusal(server, phone)
            assert (status, problem["type"]) == (503, "urn:personaplex:at-capacity")
            assert headers["Retry-After"]
            await first.begin()
            await first.until_audio(0.02)
            assert (await refusal(server, phone))[0] == 503
            await first.hang_up()
        await server.until_free()
        async with call(server, phone) as second:
            await second.begin()
            await second.until_audio(0.02)
            await second.hang_up()


async def test_a_draining_server_refuses_the_handshake(server: Server, any_phone: Phone) -> None:
    server.runtime.admission.draining = True
    status, problem, _ = await refusal(server, any_phone)
    assert (status, problem["type"]) == (503, "urn:personaplex:draining")


async def test_a_page_of_another_origin_is_refused(server: Server, any_phone: Phone) -> None:
    assert (await refusal(server, any_phone, origin="https://elsewhere.example"))[0] == 403


async def test_a_call_that_never_starts_is_closed(serve: Serve, any_phone: Phone) -> None:
    async with serve(handshake_seconds=0.2) as server, call(server, any_phone) as caller:
        assert server.runtime.admission.taken == 1
        await caller.until_closed()
        assert (caller.code, "no start" in caller.reason) == (1008, True)
        await server.until_free()


@pytest.mark.parametrize(
    ("parameters", "about"),
    [({"voice": "nobody"}, "no voice"), ({"seed": "x"}, "seed"), ({"system_prompt": "nothing"}, "no system prompt")],
)
async def test_a_bad_parameter_closes_the_call(
    server: Server, phone: Phone, parameters: dict[str, str], about: str
) -> None:
    in_url = isinstance(phone, Asterisk)
    query = "?" + "&".join(f"{name}={value}" for name, value in parameters.items()) if in_url else ""
    async with call(server, phone, query) as caller:
        await caller.begin(**({} if in_url else parameters))
        await caller.until_closed()
        # The slot was reserved before the handshake.
        assert server.runtime.admission.taken == 0
    assert caller.code == 1007
    assert about in caller.reason
    assert server.engine.opened == 0


async def test_parameters_in_the_url_are_overridden_and_unknown_ones_are_ignored(server: Server) -> None:
    async with call(server, Twilio(), "?voice=nobody&x=1&api_key=y") as caller:
        await caller.begin(voice="NATM1", caller="+49", text_prompt="")
        await caller.until_audio(0.02)
        await caller.hang_up()


STARTS = [
    ("twilio", {"mediaFormat": {"encoding": "audio/opus", "sampleRate": 8000}}, "μ-law, A-law or L16"),
    ("twilio", {"mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 16000}}, "not supported"),
    ("twilio", {"mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": "8000"}}, "samples per second"),
    ("twilio", {"mediaFormat": None}, "mediaFormat, an object"),
    ("twilio", {"streamSid": 7}, "streamSid, a string"),
    ("telnyx", {"media_format": {"encoding": "G722", "sample_rate": 8000}}, "μ-law, A-law or L16"),
    ("plivo", {"mediaFormat": {"encoding": "audio/x-l16", "sampleRate": 1}}, "samples per second"),
    ("vonage", {"content-type": "audio/l16;rate=11025"}, "not supported"),
    ("vonage", {"content-type": "audio/opus"}, "content-type"),
    ("asterisk", {"format": "opus"}, "slin16"),
]


@pytest.mark.parametrize(("service", "changes", "about"), STARTS)
async def test_a_format_that_cannot_be_used_closes_the_call(
    server: Server, service: str, changes: dict[str, Any], about: str
) -> None:
    phone = next(kind for kind in PHONES if kind.service == service)()
    start = json.loads(phone.hello()[-1])
    start.get("start", start).update(changes)
    async with call(server, phone) as caller:
        await caller.send(json.dumps(start))
        await caller.until_closed()
    assert caller.code == 1007
    assert about in caller.reason


@pytest.mark.parametrize(
    ("message", "about"),
    [
        ("{", "JSON"),
        ("[]", "object"),
        (b"\0" * 160, "binary"),
        ('{"event":"media"}', "media, an object"),
        ('{"event":"media","media":{"payload":"?"}}', "base64"),
        ('{"event":"media","media":{}}', "payload, a string"),
        (Twilio().hello()[-1], "started already"),
    ],
)
async def test_what_is_not_of_the_protocol_closes_the_call(server: Server, message: str | bytes, about: str) -> None:
    async with call(server, Twilio()) as caller:
        await caller.begin()
        await caller.send(message)
        await caller.until_closed()
        await server.until_free()
    assert caller.code == 1007
    assert about in caller.reason


async def test_a_partial_sample_closes_the_call(server: Server) -> None:
    async with call(server, Vonage()) as caller:
        await caller.begin()
        await caller.send(b"123")
        await caller.until_closed()
    assert (caller.code, "whole" in caller.reason) == (1007, True)


async def test_a_message_beyond_the_limit_closes_the_call(server: Server) -> None:
    async with call(server, Vonage()) as caller:
        await caller.begin()
        await caller.send(bytes(65_538))
        await caller.until_closed()
    assert caller.code == 1009
