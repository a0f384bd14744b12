"""Telephone calls through Triton."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from gateway.api.telephony.call import TelephoneCall
from gateway.audio.duplex import DuplexCodec
from gateway.engine.batch import AgentFrame
from gateway.session.events import AgentAudio, Event
from model_repository.synthetic.speaking.export import QUESTION
from tests.conftest import GOLDEN
from tests.end_to_end.conftest import Service, respond, wav
from tests.gateway.telephony.phones import Audio, Twilio

FRAME = 1920
PARAMETERS = {"voice": "NATF0", "text_prompt": "You are Ana.", "seed": "7"}


def spoken(seconds: float, question: Path = GOLDEN / "user.wav") -> bytes:
    """A question and silence, in μ-law at 8 kHz."""
    pcm, rate = soundfile.read(question, dtype="float32")
    track = np.zeros(round(seconds * 24_000), np.float32)
    pcm = soxr.resample(pcm, rate, 24_000)[: len(track)]
    track[: len(pcm)] = pcm
    codec = DuplexCodec("ulaw", 8_000, 24_000)
    data = codec.encode(track) + codec.finish_output()
    return data[: len(data) - len(data) % 160]


async def call(service: Service, data: bytes, pause: float) -> list[Audio]:
    """Hold a call as Twilio does, 20 ms at once; return the agent's audio."""
    phone, heard = Twilio(), list[Audio]()
    url = service.url.replace("http", "ws", 1) + phone.path
    async with connect(url, compression=None, proxy=None, max_size=None) as socket:

        async def speak() -> None:
            for message in phone.hello(**PARAMETERS):
                await socket.send(message)
            due = time.monotonic()
            for at in range(0, len(data), 160):
                await socket.send(phone.media(data[at : at + 160]))
                due += pause
                if pause:
                    await asyncio.sleep(max(due - time.monotonic(), 0))
            stop = phone.stop()
            assert stop is not None
            await socket.send(stop)

        speaking = asyncio.create_task(speak())
        try:
            async for message in socket:
                if isinstance(read := phone.read(message), Audio):
                    heard.append(read)
        except ConnectionClosed:
            pass
        await speaking
        assert socket.close_code == 1000
    return heard


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> list[AgentFrame]:
    """The agent frames of all calls."""
    frames = []
    send = TelephoneCall.send

    async def record(self: TelephoneCall, event: Event) -> None:
        if isinstance(event, AgentAudio):
            frames.append(event.frame)
        await send(self, event)

    monkeypatch.setattr(TelephoneCall, "send", record)
    return frames


async def test_a_twilio_call_equals_a_recorded_run_on_the_decoded_audio(
    golden_service: Service, agent: list[AgentFrame]
) -> None:
    data = spoken(2)
    heard = await call(golden_service, data, 0)
    codec = DuplexCodec("ulaw", 8_000, 24_000)
    decoded = np.concatenate([codec.decode(data), codec.finish_input()])
    frames = -(-len(decoded) // FRAME) + 1
    with golden_service.client() as http:
        answer = respond(
            http, wav(decoded), max_steps=frames, voice="NATF0", text_prompt=PARAMETERS["text_prompt"], seed=7
        )
    assert np.array_equal([frame.codes for frame in agent], answer.agent_codes)
    assert np.array_equal([frame.text_token for frame in agent], answer.text_tokens)
    encoder = DuplexCodec("ulaw", 8_000, 24_000)
    encoded = b"".join(encoder.encode(frame.pcm) for frame in agent)
    assert b"".join(one.data for one in heard) == encoded[: len(encoded) - len(encoded) % 160]
    golden_service.wait_until_free()


@pytest.mark.long
async def test_a_twilio_call_in_real_time(tiny_service: Service) -> None:
    began = time.monotonic()
    heard = await call(tiny_service, spoken(10), 0.02)
    elapsed = time.monotonic() - began
    seconds = sum(len(one.data) for one in heard) / 8_000
    assert seconds == pytest.approx(10, rel=0.05)
    assert elapsed == pytest.approx(10, rel=0.05)
    assert {len(one.data) for one in heard[1:]} == {640}
    await asyncio.to_thread(tiny_service.wait_until_free, 1)


@pytest.mark.long
async def test_a_question_by_telephone_is_answered(speaking_service: Service, agent: list[AgentFrame]) -> None:
    """Of a question in narrowband this model may not recognise the name of the country."""
    heard = await call(speaking_service, spoken(8, QUESTION), 0.02)
    assert re.fullmatch(r"The capital of \w+ is \w+\.", "".join(frame.text for frame in agent).strip())
    pcm = DuplexCodec("ulaw", 8_000, 24_000).decode(b"".join(one.data for one in heard))
    frames = pcm[: len(pcm) // FRAME * FRAME].reshape(-1, FRAME)
    loud = np.sqrt(np.square(frames).mean(axis=1)) > 0.01
    assert 1 < loud.sum() * 0.08 < 3
    await asyncio.to_thread(speaking_service.wait_until_free, 1)
