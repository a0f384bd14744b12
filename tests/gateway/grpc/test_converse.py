"""Live calls over gRPC: what is heard, in which order, and that it is what an offline run gives."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest
import soxr

from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.audio.opus import OpusDecoder, OpusEncoder
from gateway.audio.stream import to_bytes
from gateway.conversation.respond import split
from tests.gateway.grpc.conftest import END, FRAME, audio, heard, noise, pieces, start

FIXED = {"text_prompt": "You are Ana.", "voice": "NATF0", "include_tokens": True, "sampling": pb.Sampling(seed=1)}


async def offline(converse, pcm):
    """The tokens [frames, 9] and samples of a conversation without any face, for the fixtures' persona and seed 1."""
    conversation = converse()
    frames = [await conversation.start()]
    for user in split(pcm, FRAME):
        frames.append(await conversation.hear(user))
    await conversation.close()
    tokens = np.array([[frame.text_token, *frame.codes] for frame in frames])
    return tokens, np.concatenate([frame.pcm for frame in frames])


async def test_tokens_and_samples_are_those_of_an_offline_run(talk, converse):
    pcm = noise(7.4)
    said = await talk([start(**FIXED, format=pb.AUDIO_FORMAT_PCM_F32LE), *pieces(pcm.tobytes(), 4000), END])
    tokens, samples = await offline(converse, pcm)
    assert said.code is grpc.StatusCode.OK
    np.testing.assert_array_equal(said.tokens, tokens)
    np.testing.assert_array_equal(said.pcm("<f4"), samples)
    assert [frame.index for frame in said.audio] == list(range(9))


async def test_the_order_of_what_is_told(talk):
    said = await talk([start(**FIXED), *pieces(to_bytes(noise(14), "pcm_s16le"), 3840), END])
    assert said.kinds[:4] == ["ready", "audio", "audio", "stats"]
    assert said.kinds[-1] == "ended"
    assert said.kinds.count("audio") == 15
    assert said.kinds.count("stats") == 2
    assert said.ready.conversation_id
    assert (said.ready.voice, said.ready.seed, said.ready.sample_rate, said.ready.frame_size) == (
        "NATF0", 1, 24_000, 1920,
    )  # fmt: skip
    assert said.ready.format == pb.AUDIO_FORMAT_PCM_S16LE
    assert said.ready.setup_ms > 0
    ended = said.ended
    assert ended.reason == pb.END_REASON_COMPLETED
    assert (ended.frames, ended.dropped_frames) == (15, 0)
    assert ended.seconds == pytest.approx(1.2)
    assert ended.transcript == "".join(frame.text for frame in said.audio).strip() != ""
    assert {len(frame.data) for frame in said.audio} == {3840}
