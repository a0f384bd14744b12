"""Invalid requests: each gets a problem, frees its slot, and does not affect the next request."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile

from gateway.settings import Settings
from tests.gateway.api.problems import problem

Ask = Callable[..., Any]
Make = Callable[..., bytes]

pytestmark = pytest.mark.usefixtures("no_slot_is_lost")


def fields(body: dict[str, Any]) -> list[str]:
    return [item["field"] for item in body["errors"]]


async def test_the_error_for_an_unknown_voice_lists_the_voices(ask: Ask):
    body = problem(await ask(voice="NATX9"), 422, "unknown-voice")
    assert body["detail"] == "no voice named 'NATX9'; there are: NATF0, NATM1"
    assert fields(body) == ["voice"]


@pytest.mark.parametrize("name", ["../voices/NATF0", "/etc/passwd", "voices/NATF0.safetensors", "NATF0\0", "..", ""])
async def test_a_voice_name_is_never_a_path(ask: Ask, name: str):
    problem(await ask(voice=name), 422, "unknown-voice")


async def test_the_error_for_an_unknown_prompt_lists_the_prompts(ask: Ask):
    body = problem(await ask(system_prompt="../boss"), 422, "unknown-system-prompt")
    assert "there are: assistant, focused, customer-service, teacher, helpful, expert, warm, direct" in body["detail"]


async def test_both_prompts_are_rejected(ask: Ask):
    body = problem(await ask(system_prompt="warm", text_prompt="You are Ana."), 422, "invalid-request")
    assert body["detail"] == "expected system_prompt or text_prompt, got both"


async def test_a_prompt_longer_than_the_context_is_rejected_with_the_numbers(ask: Ask):
    body = problem(await ask(text_prompt="work " * 300), 422, "prompt-too-long")
    assert body["detail"].startswith("the text prompt has ")
    assert body["detail"].endswith("more than the model's context of 300")


@pytest.mark.parametrize(
    ("audio", "error_text"),
    [
        (b"no audio at all", "expected an audio file libsndfile reads"),
        (b"RIFF\xff\xff\xff\xffWAVEfmt ", "expected an audio file libsndfile reads"),
    ],
)
async def test_corrupt_audio_is_rejected(ask: Ask, audio: bytes, error_text: str):
    body = problem(await ask(audio=audio), 422, "unusable-audio")
    assert error_text in body["detail"]
    assert fields(body) == ["audio"]


async def test_audio_without_samples_is_rejected(ask: Ask, recording: Make):
    body = problem(await ask(audio=recording(0)), 422, "unusable-audio")
    assert body["detail"] == "expected some audio, got a file without samples"


async def test_empty_audio_is_rejected(ask: Ask, client: httpx.AsyncClient):
    assert fields(problem(await ask(audio=b""), 422, "invalid-request")) == ["audio"]
    empty = await client.post("/v1/respond", files={"audio": ("a.wav", b"")})
    assert fields(problem(empty, 422, "invalid-request")) == ["audio"]


async def test_too_long_audio_is_rejected(ask: Ask, recording: Make):
    body = problem(await ask(audio=recording(126)), 422, "unusable-audio")
    assert body["detail"] == "expected at most 10 s of audio, got more"


@pytest.mark.parametrize("rate", [4_000, 200_000])
async def test_rates_outside_8_to_192_khz_are_rejected(ask: Ask, recording: Make, rate: int):
    problem(await ask(audio=recording(5, rate)), 422, "unusable-audio")


async def test_nan_samples_are_rejected(ask: Ask):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.array([0.1, np.nan, 0.2]), 24_000, format="WAV", subtype="FLOAT")
    body = problem(await ask(audio=buffer.getvalue()), 422, "unusable-audio")
    assert body["detail"] == "expected finite samples, got NaN or infinity"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("audio_temperature", -0.1),
        ("audio_temperature", 2.1),
        ("text_temperature", 1e300),
        ("audio_top_k", -1),
        ("text_top_k", 10**7),
        ("max_steps", 0),
        ("max_steps", -3),
        ("max_steps", 401),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", 10**400),
        ("text_prompt", "a" * 20_001),
        ("include", ["everything"]),
    ],
)
async def test_values_out_of_range_are_rejected(ask: Ask, field: str, value: Any):
    named = fields(problem(await ask(**{field: value}), 422, "invalid-request"))
    assert named[0].split(".")[0] == field


async def raw(client: httpx.AsyncClient, body: str | bytes, kind: str = "application/json") -> httpx.Response:
    return await client.post("/v1/respond", content=body, headers={"Content-Type": kind})


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e400"])
async def test_json_nan_and_infinity_are_rejected(client: httpx.AsyncClient, literal: str):
    body = problem(await raw(client, f'{{"audio": "AA==", "audio_temperature": {literal}}}'), 422, "invalid-request")
    assert fields(body) == ["audio_temperature"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("audio_temperature", "0.8"),
        ("audio_top_k", "250"),
        ("audio_top_k", 2.5),
        ("audio_top_k", True),
        ("greedy", "true"),
        ("greedy", 1),
        ("stream", []),
        ("seed", {}),
        ("voice", 5),
        ("text_prompt", ["a"]),
        ("include", "tokens"),
        ("audio", 5),
        ("audio", None),
        ("audio", "not base64!"),
    ],
)
async def test_wrong_types_are_rejected(client: httpx.AsyncClient, field: str, value: Any):
    body = {"audio": "AA==", field: value}
    assert fields(problem(await raw(client, json.dumps(body)), 422, "invalid-request"))[0].split(".")[0] == field


async def test_a_lone_surrogate_is_rejected(client: httpx.AsyncClient):
    answer = await raw(client, r'{"audio": "AA==", "text_prompt": "\ud800"}')
    assert answer.status_code in (400, 422)
    assert answer.headers["content-type"] == "application/problem+json"


async def test_unknown_fields_are_rejected_in_both_kinds_of_body(client: httpx.AsyncClient, ask: Ask, recording: Make):
    assert fields(problem(await ask(temperature=0.5), 422, "invalid-request")) == ["temperature"]
    form = await client.post("/v1/respond", files={"audio": ("a.wav", recording())}, data={"temperature": "0.5"})
    assert fields(problem(form, 422, "invalid-request")) == ["temperature"]


async def test_every_invalid_field_is_listed(ask: Ask):
    body = problem(await ask(audio_top_k=-1, seed="x", nonsense=1), 422, "invalid-request")
    assert sorted(fields(body)) == ["audio_top_k", "nonsense", "seed"]


async def test_missing_audio_is_rejected(client: httpx.AsyncClient):
    assert fields(problem(await raw(client, "{}"), 422, "invalid-request")) == ["audio"]


@pytest.mark.parametrize(
    "form",
    [
        {"files": {"audio": (None, "text instead of a file")}},
        {"files": {"audio": ("a.wav", b"x"), "voice": ("v.txt", b"NATF0")}},
        {"files": [("audio", ("a.wav", b"x")), ("audio", ("b.wav", b"y"))]},
        {"files": {"audio": ("a.wav", b"x")}, "data": {"seed": ["1", "2"]}},
        {"files": {"audio": ("a.wav", b"x")}, "data": {"seed": ""}},
        {"files": {"audio": ("a.wav", b"x")}, "data": {"audio_temperature": "nan"}},
        {"files": {"audio": ("a.wav", b"x")}, "data": {"greedy": "perhaps"}},
    ],
)
async def test_forms_with_the_wrong_parts_are_rejected(client: httpx.AsyncClient, form: dict[str, Any]):
    problem(await client.post("/v1/respond", **form), 422, "invalid-request")


@pytest.mark.parametrize("body", ["", "{", "[1,", "\xff", '{"audio": }'])
async def test_a_body_that_is_not_json_is_rejected(client: httpx.AsyncClient, body: str):
    problem(await raw(client, body.encode("latin-1")), 400, "malformed-body")


@pytest.mark.parametrize("body", ["[]", "5", '"audio"', "null"])
async def test_json_that_is_no_object_is_rejected(client: httpx.AsyncClient, body: str):
    problem(await raw(client, body), 422, "invalid-request")


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=x"])
async def test_a_body_that_is_not_a_form_is_rejected(client: httpx.AsyncClient, kind: str):
    problem(await raw(client, b"--y\r\nno form\r\n", kind), 400, "malformed-body")


@pytest.mark.parametrize("kind", ["audio/wav", "application/x-www-form-urlencoded", "text/plain; charset=utf-8", ""])
async def test_other_kinds_of_body_are_rejected(client: httpx.AsyncClient, recording: Make, kind: str):
    problem(await raw(client, recording(), kind), 415, "unsupported-media-type")


async def test_a_body_over_the_limit_is_rejected_by_its_header(client: httpx.AsyncClient, settings: Settings, ask: Ask):
    settings.max_body_bytes = 1000
    body = problem(await ask(), 413, "payload-too-large")
    assert body["detail"] == "expected a body of at most 1000 bytes"


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
async def test_a_body_over_the_limit_is_not_read_to_its_end(client: httpx.AsyncClient, settings: Settings, kind: str):
    settings.max_body_bytes = 10_000
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="audio"; filename="a.wav"\r\n\r\n'
        while True:
            sent += 1000
            yield b"a" * 1000

    answer = await client.post("/v1/respond", content=endless(), headers={"Content-Type": kind})
    problem(answer, 413, "payload-too-large")
    assert sent <= 11_000


async def test_a_json_response_cannot_be_streamed(ask: Ask):
    assert fields(problem(await ask(stream=True), 422, "invalid-request")) == ["stream"]


async def test_a_voice_recording_is_rejected_unless_the_operator_allows_it(ask: Ask, recording: Make):
    body = problem(await ask(voice_audio=base64.b64encode(recording(6)).decode()), 403, "not-allowed")
    assert "voice_audio" in body["detail"]


@pytest.mark.parametrize(
    ("frames", "gain", "error_text"), [(4, 1.0, "at least 0.4 s"), (6, 0.0, "got silence"), (70, 1.0, "at most 5 s")]
)
async def test_an_unusable_voice_recording_is_rejected(
    ask: Ask, settings: Settings, frames: int, gain: float, error_text: str
):
    settings.allow_voice_audio = True
    buffer = io.BytesIO()
    noise = gain * np.random.default_rng(0).uniform(-0.5, 0.5, frames * 1920)
    soundfile.write(buffer, noise, 24_000, format="WAV")
    body = problem(await ask(voice_audio=base64.b64encode(buffer.getvalue()).decode()), 422, "unusable-audio")
    assert error_text in body["detail"]
    assert fields(body) == ["voice_audio"]


async def test_a_voice_and_a_voice_recording_are_rejected(ask: Ask, settings: Settings, recording: Make):
    settings.allow_voice_audio = True
    answer = await ask(voice="NATF0", voice_audio=base64.b64encode(recording(6)).decode())
    assert fields(problem(answer, 422, "invalid-request")) == ["voice_audio"]


@pytest.mark.parametrize("path", ["/v1", "/v1/voice", "/v1/voices/", "/v1/voices/..%2f..%2fetc%2fpasswd"])
async def test_an_unknown_path_is_a_404(client: httpx.AsyncClient, path: str):
    problem(await client.get(path), 404, "http-404")


@pytest.mark.parametrize(
    ("method", "path", "allowed"), [("GET", "/v1/respond", "POST"), ("DELETE", "/v1/voices", "GET")]
)
async def test_an_unknown_method_is_a_405_with_an_allow_header(
    client: httpx.AsyncClient, method: str, path: str, allowed: str
):
    answer = await client.request(method, path)
    problem(answer, 405, "http-405")
    assert answer.headers["allow"] == allowed
