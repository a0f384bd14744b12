"""Live WebSocket sessions through Triton give the results of a recording with the same samples."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Callable, Iterator
from time import perf_counter
from urllib.parse import urlencode

import numpy as np
import pytest
import soundfile
import soxr
import sphn
from numpy.typing import NDArray
from websockets.asyncio.client import connect as connect_async
from websockets.sync.client import ClientConnection, connect

from gateway.audio.ogg import OggWriter
from gateway.audio.ogg_opus import OggOpusReader, OggOpusWriter
from gateway.audio.opus import OpusEncoder
from tests.clients.conftest import QUESTION, chat_texts, python_of, run_client
from tests.conftest import GOLDEN
from tests.end_to_end.conftest import Service, respond, wav
from tests.gateway.websocket.moshi import Conversation
from tests.gateway.websocket.test_moshi_client import SEED, Recording

__all__ = ["chat_texts"]

FRAME = 1920
PROMPT = "You are Ana."


@pytest.fixture(scope="module")
def user() -> NDArray[np.float32]:
    """2 s of the golden question."""
    pcm, _ = soundfile.read(GOLDEN / "user.wav", dtype="float32")
    return pcm[: 25 * FRAME]


def socket(service: Service, path: str) -> ClientConnection:
    return connect(service.url.replace("http", "ws", 1) + path, compression=None, proxy=None)


def test_converse_equals_a_recorded_run(golden_service: Service, user: NDArray[np.float32]) -> None:
    params = {"seed": 7, "voice": "NATF0", "text_prompt": PROMPT}
    with socket(golden_service, "/v1/converse") as client:
        client.send(json.dumps({"type": "start", "audio": {"format": "pcm_f32le"}, **params}))
        for at in range(0, len(user), 3000):
            client.send(user[at : at + 3000].tobytes())
        client.send(json.dumps({"type": "end"}))
        messages = list(client)
    agent = np.frombuffer(b"".join(part for part in messages if isinstance(part, bytes)), "<f4")
    with golden_service.client() as http:
        answer = respond(http, wav(user), max_steps=26, **params)
    assert np.array_equal((np.clip(agent, -1, 1) * 32767).astype(np.int16), np.round(answer.pcm * 32768))
    ended = json.loads(messages[-1])
    assert ended["reason"] == "completed"
    assert ended["frames"] == 26
    assert ended["transcript"] == answer.body["transcript"]
    golden_service.wait_until_free()


def test_chat_equals_a_recorded_run_on_the_decoded_stream(
    golden_service: Service, user: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = Recording(monkeypatch)
    ours = OggOpusWriter()
    stream = [ours.head(), *(ours.write(frame) for frame in user.reshape(-1, FRAME))]
    stream.append(ours.write(np.zeros(FRAME, np.float32), last=True))
    query = {"voice_prompt": "NATF0.pt", "text_prompt": PROMPT, "seed": 7, "audio_topk": 9, "text_temperature": 0.5}
    with socket(golden_service, "/api/chat?" + urlencode(query)) as client:
        for page in stream:
            client.send(b"\x01" + page)
        messages = [message for message in client if isinstance(message, bytes)]
    received = np.concatenate(list(OggOpusReader().read(b"".join(stream))))
    frames = -(-len(received) // FRAME) + 1
    with golden_service.client() as http:
        answer = respond(
            http, wav(received), max_steps=frames, voice="NATF0", text_prompt=PROMPT, seed=7, audio_top_k=9,
            text_temperature=0.5,
        )  # fmt: skip
    assert messages[0] == b"\x00"
    text = b"".join(message[1:] for message in messages if message[:1] == b"\x02").decode()
    assert text.strip() == answer.body["transcript"]
    agent = [event.frame for event in recording.agent]
    assert np.array_equal([frame.codes for frame in agent], answer.agent_codes)
    again = OggOpusWriter()
    pages = [again.head(), *(again.write(frame.pcm) for frame in agent)]
    assert [message[1:] for message in messages if message[:1] == b"\x01"] == pages
    golden_service.wait_until_free()


def test_the_moshi_client_holds_a_conversation(
    tiny_service: Service, user: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = Recording(monkeypatch)
    conversation = Conversation(user)

    async def all_answered() -> None:
        async with asyncio.timeout(60):
            while len(recording.agent) < 25 or len(conversation.printer.tokens) < len(recording.texts):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    with conversation.running(tiny_service.url):
        asyncio.run(all_answered())
    received = np.concatenate(list(OggOpusReader().read(b"".join(recording.stream))))
    with tiny_service.client() as http:
        answer = respond(http, wav(received), max_steps=25, seed=SEED)
    agent = [event.frame for event in recording.agent]
    assert np.array_equal([frame.text_token for frame in agent], answer.text_tokens)
    assert np.array_equal([frame.codes for frame in agent], answer.agent_codes)
    assert conversation.printer.tokens == recording.texts
    assert np.isfinite(conversation.device.played).all()
    assert np.any(conversation.device.played)
    tiny_service.wait_until_free()


@pytest.mark.long
@pytest.mark.alone
@pytest.mark.timeout(600)
async def test_livekits_nvidia_plugin_holds_a_call(tiny_service: Service, chat_texts: list[str]) -> None:
    url = tiny_service.url.replace("http", "ws", 1)
    found = await run_client(python_of("livekit"), "livekit_nvidia.py", url, QUESTION, 10)
    await asyncio.to_thread(tiny_service.wait_until_free, 1)
    assert found["errors"] == []
    # The plain path has audio all the time, which the plugin takes for one generation.
    (generation,) = found["generations"]
    assert generation["seconds"] == pytest.approx(found["seconds"] - found["connect_seconds"], rel=0.05)
    expected = "".join(chat_texts)
    assert expected.startswith(generation["text"])
    assert len(generation["text"]) > 0.9 * len(expected) > 0


def pages_of_version_1(pcm: NDArray[np.float32]) -> Iterator[bytes]:
    """The stream of Full-Duplex-Bench's Moshi client, a piece per 80 ms: the package `sphn` makes it."""
    writer = sphn.OpusStreamWriter(24_000)
    for at in range(0, len(pcm), FRAME):
        yield writer.append_pcm(pcm[at : at + FRAME])


def pages_of_version_2(pcm: NDArray[np.float32]) -> Iterator[bytes]:
    """The stream of its Moshi adapter, a piece per 20 ms: a packet per page, and positions that count packets."""
    encoder, ogg = OpusEncoder(), OggWriter(1)
    head = ogg.page(struct.pack("<8sBBHIhB", b"OpusHead", 1, 1, 312, 24_000, 0, 0), 0)
    tags = ogg.page(struct.pack("<8sI4sI", b"OpusTags", 4, b"node", 0), 0)
    for number, at in enumerate(range(0, len(pcm), 480)):
        yield (head + tags if at == 0 else b"") + ogg.page(encoder.encode(pcm[at : at + 480]), number + 1)


@pytest.mark.long
@pytest.mark.parametrize(
    ("pages", "step", "patience"), [(pages_of_version_1, 0.08, 1.0), (pages_of_version_2, 0.02, 0.8)]
)
async def test_full_duplex_bench_holds_a_call(
    tiny_service: Service,
    chat_texts: list[str],
    pages: Callable[[NDArray[np.float32]], Iterator[bytes]],
    step: float,
    patience: float,
) -> None:
    """As its clients do: without a query, and without waiting long for the handshake."""
    pcm, rate = soundfile.read(QUESTION, dtype="float32")
    track = np.zeros(10 * 24_000, np.float32)
    question = soxr.resample(pcm, rate, 24_000)
    track[: len(question)] = question
    messages: list[bytes] = []
    url = tiny_service.url.replace("http", "ws", 1) + "/api/chat"
    async with connect_async(url, compression=None, proxy=None) as client:

        async def receive() -> None:
            async for message in client:
                assert isinstance(message, bytes)
                messages.append(message)

        receiving = asyncio.create_task(receive())
        waited = perf_counter()
        while b"\x00" not in messages and perf_counter() - waited < patience:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        began = due = perf_counter()
        for page in pages(track):
            await client.send(b"\x01" + page)
            due += step
            await asyncio.sleep(max(due - perf_counter(), 0))
        elapsed = perf_counter() - began
        await asyncio.sleep(0.5)
        receiving.cancel()
    await asyncio.to_thread(tiny_service.wait_until_free, 1)
    audio = OggOpusReader().read(b"".join(message[1:] for message in messages if message[:1] == b"\x01"))
    assert sum(map(len, audio)) / 24_000 == pytest.approx(elapsed, rel=0.05)
    text = b"".join(message[1:] for message in messages if message[:1] == b"\x02").decode()
    expected = "".join(chat_texts)
    assert expected.startswith(text)
    assert len(text) > 0.9 * len(expected) > 0


def test_the_handshake_of_a_warm_default_persona_takes_less_than_half_a_second(tiny_service: Service) -> None:
    """`livekit-plugins-nvidia` queues its microphone until then; Full-Duplex-Bench waits 0.8 s and has no query."""
    seconds = []
    for _ in range(3):
        began = perf_counter()
        with socket(tiny_service, "/api/chat") as client:
            assert client.recv(timeout=10) == b"\x00"
            seconds.append(perf_counter() - began)
        tiny_service.wait_until_free()
    assert min(seconds[1:]) < 0.5
