"""`/v1/converse`: messages of a correct client and of the server."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import soxr

from tests.gateway.websocket.conftest import END, FRAME, Received, Server, receive_all, start


async def talk(server: Server, first: str, *audio: bytes) -> Received:
    """A whole call."""
    async with server.connect() as client:
        await client.send(first)
        for data in audio:
            await client.send(data)
        await client.send(END)
        return await receive_all(client)


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


async def test_a_session_from_start_to_end(server: Server, noise: Callable[..., Any]) -> None:
    received = await talk(server, start(seed=1, voice="NATM1"), (noise(5) * 32767).astype("<i2").tobytes())
    assert received.code == 1000
    assert received.order[:2] == ["ready", "audio"]
    assert received.order[-1] == "ended"
    ready = received.one("ready")
    assert ready["voice"] == "NATM1"
    assert ready["seed"] == 1
    assert ready["audio"] == {"format": "pcm_s16le", "sample_rate": 24000}
    assert ready["frame_size"] == FRAME
    assert ready["setup_ms"] >= 0
    assert [len(audio) for audio in received.audio] == [FRAME * 2] * 6
    ended = received.one("ended")
    assert ended["reason"] == "completed"
    assert ended["frames"] == 6
    assert ended["seconds"] == pytest.approx(6 * 0.08)
    assert ended["dropped_frames"] == 0
    assert ended["transcript"] == "".join(text["text"] for text in received.of("text")).strip() != ""


async def test_the_text_of_a_frame_precedes_its_audio(server: Server, noise: Callable[..., Any]) -> None:
    received = await talk(server, start(seed=1, audio={"format": "pcm_f32le"}), noise(20).tobytes())
    text_frames = iter(text["index"] for text in received.of("text"))
    frame = 0
    for kind, following in pairwise(received.order):
        if kind == "text":
            assert following == "audio"
            assert next(text_frames) == frame
        frame += kind == "audio"


@pytest.mark.parametrize("size", [2, 1000, 3840, 100_000])
async def test_messages_of_any_size_give_the_response_to_the_recording(
    server: Server, noise: Callable[..., Any], size: int
) -> None:
    pcm = (noise(0.1 if size == 2 else 12.3) * 32767).astype("<i2")
    params = {"seed": 5, "text_prompt": "You are Ana.", "audio_top_k": 7, "text_temperature": 0.1}
    received = await talk(server, start(**params), *pieces(pcm.tobytes(), size))
    frames = -(-len(pcm) // FRAME) + 1
    answer = await server.offline(pcm / np.float32(32768), frames, **params)
    assert len(received.audio) == answer["frames"] == frames
    assert np.array_equal(received.pcm, answer["audio"])
    assert received.one("ended")["transcript"] == answer["transcript"]


@pytest.mark.parametrize("rate", [8_000, 16_000, 48_000])
async def test_other_rates_are_resampled(server: Server, noise: Callable[..., Any], rate: int) -> None:
    pcm = noise(10)
    first = start(seed=2, audio={"format": "pcm_f32le", "sample_rate": rate})
    received = await talk(server, first, *pieces(pcm.tobytes(), 4 * 777))
    stream = soxr.ResampleStream(rate, 24_000, 1, dtype="float32", quality="HQ")
    parts = [stream.resample_chunk(pcm[at : at + 777]) for at in range(0, len(pcm), 777)]
    resampled = np.concatenate([*parts, stream.resample_chunk(pcm[:0], last=True)])
    frames = -(-len(resampled) // FRAME) + 1
    answer = await server.offline(resampled, frames, seed=2)
    assert received.one("ready")["audio"] == {"format": "pcm_f32le", "sample_rate": 24000}
    assert np.array_equal((np.clip(received.pcm, -1, 1) * 32767).astype(np.int16), answer["audio"])


async def test_the_seed_determines_the_response(server: Server, noise: Callable[..., Any]) -> None:
    one, same, other = [await talk(server, start(seed=seed), bytes(FRAME * 20)) for seed in (3, 3, 4)]
    assert one.audio == same.audio != other.audio


async def test_greedy_ignores_the_seed(server: Server) -> None:
    one, other = [await talk(server, start(seed=seed, greedy=True), bytes(FRAME * 20)) for seed in (3, 4)]
    assert one.audio == other.audio


async def test_absent_params_have_defaults(server: Server) -> None:
    received = await talk(server, start(voice=None, seed=None), bytes(2 * FRAME))
    ready = received.one("ready")
    assert ready["voice"] == "NATF0"
    assert 0 <= ready["seed"] < 2**53


async def test_stats_are_sent_about_once_a_second(server: Server) -> None:
    received = await talk(server, start(), bytes(2 * FRAME * 50))
    stats = received.of("stats")
    assert [item["index"] for item in stats] == [12, 24, 37, 49]
    assert all(item["dropped_frames"] == 0 <= item["queued_ms"] for item in stats)
    # All but the first frame was sent ahead of its time.
    assert 0 < stats[0]["latency_ms"] < 80
    assert all(item["latency_ms"] == 0 for item in stats[1:])


async def test_a_session_without_audio_is_frame_0_only(server: Server) -> None:
    received = await talk(server, start())
    assert received.one("ended")["frames"] == len(received.audio) == 1
    assert received.code == 1000


@pytest.mark.parametrize("late", [bytes(2 * FRAME), bytes(3)], ids=["a frame", "half a sample"])
@pytest.mark.parametrize("rate", [24_000, 8_000])
async def test_audio_after_the_end_is_ignored(server: Server, rate: int, late: bytes) -> None:
    async with server.connect() as client:
        await client.send(start(audio={"sample_rate": rate}))
        await client.send(bytes(2 * FRAME * 20 * rate // 24_000))
        await client.send(END)
        await client.send(late)
        await client.send(END)
        received = await receive_all(client)
    assert received.code == 1000
    assert received.one("ended")["frames"] == len(received.audio) == 21


async def test_agent_audio_arrives_while_user_audio_is_sent(server: Server) -> None:
    """Frame u + 1 comes after user frame u and before user frame u + 1."""
    async with server.connect() as client:
        await client.send(start())
        received = 0
        for sent in range(8):
            while received < sent + 1:
                received += isinstance(await client.recv(), bytes)
            await client.send(bytes(2 * FRAME))


async def test_silence_replaces_missing_audio(serve: Callable[..., Any]) -> None:
    async with serve(live_speed=1) as server, server.connect() as client:
        await client.send(start(on_gap="silence"))
        frames = 0
        while frames < 6:
            frames += isinstance(await client.recv(), bytes)
