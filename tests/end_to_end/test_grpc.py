"""Live calls and answers over gRPC, through real Triton: the reference's tokens and samples."""

from __future__ import annotations

import threading

import grpc
import numpy as np
import soundfile
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.api.grpc.personaplex.v1 import personaplex_pb2_grpc
from tests.conftest import GOLDEN
from tests.end_to_end.conftest import Service

PROMPT = (GOLDEN / "prompt.txt").read_text()


def user() -> np.ndarray:
    pcm, rate = soundfile.read(GOLDEN / "user.wav", dtype="float32")
    assert rate == 24_000
    return pcm


def test_a_live_call_has_the_golden_tokens(golden_service: Service, golden):
    def messages():
        sampling = pb.Sampling(greedy=True)
        yield pb.ConverseRequest(
            start=pb.Start(
                voice="NATF0",
                text_prompt=PROMPT,
                sampling=sampling,
                format=pb.AUDIO_FORMAT_PCM_F32LE,
                include_tokens=True,
            )
        )
        data = user()[: 49 * 1920].astype("<f4").tobytes()
        # Not in frames: the gateway cuts.
        for at in range(0, len(data), 10_000):
            yield pb.ConverseRequest(audio=data[at : at + 10_000])

    with grpc.insecure_channel(golden_service.grpc_target) as channel:
        messages = list(personaplex_pb2_grpc.PersonaPlexStub(channel).Converse(messages()))
    frames = [message.audio for message in messages if message.WhichOneof("message") == "audio"]
    tokens = np.array([[frame.text_token, *frame.agent_codes] for frame in frames])
    np.testing.assert_array_equal(tokens, golden["out_tokens"][:, :9])
    pcm = np.frombuffer(b"".join(frame.data for frame in frames), "<f4")
    np.testing.assert_allclose(pcm, golden["pcm"].reshape(-1), atol=1e-4)
    ended = messages[-1].ended
    assert (ended.reason, ended.frames, ended.dropped_frames) == (pb.END_REASON_COMPLETED, 50, 0)
    golden_service.wait_until_free()


def test_an_answer_has_the_golden_tokens(golden_service: Service, golden):
    request = pb.RespondRequest(
        audio=(GOLDEN / "user.wav").read_bytes(),
        voice_audio=(GOLDEN / "voice.wav").read_bytes(),
        text_prompt=PROMPT,
        sampling=pb.Sampling(greedy=True),
        max_steps=50,
        include_tokens=True,
    )
    with grpc.insecure_channel(golden_service.grpc_target) as channel:
        answer = personaplex_pb2_grpc.PersonaPlexStub(channel).Respond(request)
    np.testing.assert_array_equal(answer.text_tokens, golden["out_tokens"][:, 0])
    np.testing.assert_array_equal(np.reshape(answer.agent_codes, (50, 8)), golden["out_tokens"][:, 1:9])
    np.testing.assert_array_equal(np.reshape(answer.user_codes, (50, 8)), golden["user_codes"])


def test_concurrent_sessions_are_independent(golden_service: Service, golden):
    """Eight users start together; all receive what a single one would. Each sends a frame after the previous answer:
    audio that waits while eight prompts are prefilled would be dropped as too old.
    """
    outcomes = [None] * 8
    pcm = np.round(user()[: 20 * 1920] * 32767).astype("<i2").tobytes()

    def messages(request: pb.ConverseRequest, answered: threading.Semaphore):
        yield request
        for at in range(0, len(pcm), 3840):
            answered.acquire()
            yield pb.ConverseRequest(audio=pcm[at : at + 3840])

    def call(number: int) -> None:
        request = pb.ConverseRequest(
            start=pb.Start(
                text_prompt=PROMPT, sampling=pb.Sampling(greedy=True), include_tokens=True, on_gap=pb.ON_GAP_WAIT
            )
        )
        answered, frames = threading.Semaphore(0), []
        with grpc.insecure_channel(golden_service.grpc_target) as channel:
            for message in personaplex_pb2_grpc.PersonaPlexStub(channel).Converse(messages(request, answered)):
                if message.WhichOneof("message") == "audio":
                    frames.append(message.audio)
                    answered.release()
        outcomes[number] = [[frame.text_token, *frame.agent_codes] for frame in frames]

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(outcomes[0]) == 21
    assert all(outcome == outcomes[0] for outcome in outcomes)
    golden_service.wait_until_free()


def test_health_follows_triton(golden_service: Service):
    with grpc.insecure_channel(golden_service.grpc_target) as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
