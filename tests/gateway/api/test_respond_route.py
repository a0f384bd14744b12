"""POST /v1/respond: parameters and responses."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile

from gateway.engine.fake import FakeBackend
from gateway.manifest import Manifest
from gateway.session.persona import SILENCE, SYSTEM_PROMPTS
from gateway.settings import Settings
from gateway.voices.registry import VoiceRegistry

Ask = Callable[..., Any]
Make = Callable[..., bytes]


def samples(data: bytes) -> np.ndarray:
    pcm, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    assert rate == 24_000
    assert pcm.ndim == 1
    return pcm


async def test_a_form_gets_a_wav(client: httpx.AsyncClient, recording: Make):
    answer = await client.post(
        "/v1/respond", files={"audio": ("user.wav", recording(), "audio/wav")}, data={"max_steps": "6", "seed": "11"}
    )
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "audio/wav"
    assert answer.headers["x-personaplex-seed"] == "11"
    assert answer.headers["x-personaplex-frames"] == "6"
    assert len(samples(answer.content)) == 6 * 1920


async def test_the_json_response_is_complete(ask: Ask):
    answer = await ask(seed=11, include=["tokens"])
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body["frames"] == 4
    assert body["sample_rate"] == 24_000
    assert body["voice"] == "NATF0"
    assert body["seed"] == 11
    assert len(samples(base64.b64decode(body["audio"]))) == 4 * 1920
    assert np.array(body["agent_codes"]).shape == (4, 8)
    assert np.array(body["user_codes"]).shape == (4, 8)
    assert len(body["text_tokens"]) == 4
    assert body["text_tokens"][0] == 3
    assert body["agent_codes"][0] == SILENCE.tolist()
    timings = body["timings"]
    assert set(timings["stages"]) == {"encode", "temporal", "depformer", "decode"}
    assert 0 < timings["setup_ms"] <= timings["time_to_first_audio_ms"]
    assert timings["rtf"] > 0
    assert timings["stages"]["temporal"]["median_ms"] <= timings["stages"]["temporal"]["p99_ms"]


async def test_tokens_are_included_on_request_only(ask: Ask):
    body = (await ask()).json()
    assert not {"text_tokens", "agent_codes", "user_codes"} & set(body)


async def test_the_transcript_equals_the_text_of_the_tokens(ask: Ask, tokenizer: Any):
    body = (await ask(seed=1, max_steps=20, include=["tokens"])).json()
    assert body["transcript"] == "".join(tokenizer.pieces[token] for token in body["text_tokens"]).strip()
    assert body["transcript"]


async def test_form_json_and_stream_give_the_same_audio(client: httpx.AsyncClient, ask: Ask, recording: Make):
    fields = {"seed": 5, "max_steps": 8, "voice": "NATM1", "text_prompt": "You are Ana."}
    as_json = base64.b64decode((await ask(**fields)).json()["audio"])
    as_wav = (await ask(accept="audio/wav", **fields)).content
    streamed = (await ask(accept="*/*", stream=True, **fields)).content
    files = {"audio": ("a.wav", recording())}
    form = (await client.post("/v1/respond", files=files, data={k: str(v) for k, v in fields.items()})).content
    assert as_json == as_wav == streamed == form


async def test_the_seed_determines_the_response(ask: Ask):
    first = (await ask(include=["tokens"])).json()
    again = (await ask(include=["tokens"], seed=first["seed"])).json()
    other = (await ask(include=["tokens"], seed=first["seed"] + 1)).json()
    assert again["agent_codes"] == first["agent_codes"]
    assert again["audio"] == first["audio"]
    assert other["agent_codes"] != first["agent_codes"]


async def test_chosen_seeds_differ_and_are_exact_in_a_double(ask: Ask):
    seeds = [(await ask()).json()["seed"] for _ in range(3)]
    assert len(set(seeds)) == 3
    assert all(int(float(seed)) == seed for seed in seeds)


async def test_absent_values_default_to_the_repositorys(ask: Ask, engine: FakeBackend):
    await ask()
    assert {(kind, sampler.temperature, sampler.top_k) for kind, sampler in engine.samplers} == {
        ("text", 0.7, 25),
        ("audio", 0.8, 250),
    }
    engine.samplers.clear()
    await ask(audio_temperature=0.5, audio_top_k=0, text_temperature=None, text_top_k=9)
    assert {(kind, sampler.temperature, sampler.top_k) for kind, sampler in engine.samplers} == {
        ("text", 0.7, 9),
        ("audio", 0.5, 0),
    }


async def test_greedy_overrides_the_temperatures(ask: Ask, engine: FakeBackend):
    await ask(greedy=True, audio_temperature=1.5)
    assert {sampler.temperature for _, sampler in engine.samplers} == {0.0}


async def test_top_k_is_limited_to_the_vocabulary(ask: Ask, engine: FakeBackend):
    await ask(audio_top_k=1_000_000, text_top_k=1_000_000)
    assert {(kind, sampler.top_k) for kind, sampler in engine.samplers} == {("text", 400), ("audio", 2048)}


def prompt_tokens(engine: FakeBackend) -> list[int]:
    """Text tokens of the last prompt but its paddings; the first column is the voice's last."""
    columns = engine.prefills[-1].steps
    return [token for token in columns[:, 0].tolist() if token != 3]


@pytest.mark.parametrize("name", SYSTEM_PROMPTS)
async def test_a_system_prompt_is_prefilled_as_its_text(ask: Ask, engine: FakeBackend, name: str, tokenizer: Any):
    assert (await ask(system_prompt=name)).status_code == 200
    assert prompt_tokens(engine) == tokenizer.encode_prompt(SYSTEM_PROMPTS[name])


async def test_the_default_prompt_is_assistant(ask: Ask, engine: FakeBackend, tokenizer: Any):
    tokens = tokenizer.encode_prompt(SYSTEM_PROMPTS["assistant"])
    answer = await ask()
    assert answer.status_code == 200
    assert prompt_tokens(engine) == tokens


@pytest.mark.parametrize("text", ["", "  \n"])
async def test_an_empty_text_prompt_means_no_text(ask: Ask, engine: FakeBackend, text: str):
    assert (await ask(text_prompt=text)).status_code == 200
    columns = engine.prefills[-1].steps
    assert prompt_tokens(engine) == []
    assert len(columns) == 1 + 12


async def test_the_named_voice_is_used(ask: Ask, engine: FakeBackend, manifest: Manifest):
    assert (await ask(voice="NATM1")).json()["voice"] == "NATM1"
    embeddings = engine.prefills[-1].embeddings
    assert np.array_equal(embeddings, VoiceRegistry(manifest).require("NATM1").preset.embeddings)


@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (44_100, 2), (192_000, 1)])
async def test_any_rate_and_stereo_are_accepted(ask: Ask, recording: Make, rate: int, channels: int):
    body = (await ask(audio=recording(5, rate, channels), max_steps=5, include=["tokens"])).json()
    assert len(body["user_codes"]) == 5


async def test_without_max_steps_there_are_250_frames_after_the_recording(ask: Ask):
    assert (await ask(max_steps=None)).json()["frames"] == 5 + 250


async def test_without_max_steps_two_silent_seconds_end_the_response(ask: Ask, engine: FakeBackend):
    engine.mute = True
    body = (await ask(max_steps=None)).json()
    assert body["frames"] == 5 + 25
    assert body["transcript"] == ""


async def test_the_operators_limit_also_applies_without_max_steps(ask: Ask, settings: Settings):
    settings.max_steps = 40
    assert (await ask(max_steps=None)).json()["frames"] == 40


async def test_a_streamed_wav_of_unknown_length_can_be_read(ask: Ask):
    answer = await ask(accept="audio/wav", max_steps=None, stream=True)
    assert answer.headers["content-type"] == "audio/wav"
    assert "content-length" not in answer.headers
    assert len(samples(answer.content)) == 255 * 1920


async def test_voice_audio_is_accepted_if_it_is_enabled(
    ask: Ask, recording: Make, settings: Settings, engine: FakeBackend
):
    settings.allow_voice_audio = True
    voice = base64.b64encode(recording(6)).decode()
    body = (await ask(voice_audio=voice, text_prompt="")).json()
    assert body["voice"] == "voice_audio"
    columns, embeddings = engine.prefills[-1].steps, engine.prefills[-1].embeddings
    assert len(embeddings) == 0
    assert len(columns) == 6 + 12
    assert (engine.opened, engine.closed) == (1, 1)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "audio/wav"),
        ("audio/wav", "audio/wav"),
        ("application/json", "application/json"),
        ("application/json, text/plain, */*", "application/json"),
        ("application/json;q=0.5, audio/wav", "audio/wav"),
        ("audio/*, application/json;q=0.1", "audio/wav"),
        ("text/html", "audio/wav"),
        ("application/*", "application/json"),
        ("application/json;q=x, ;, ,", "audio/wav"),
    ],
)
async def test_the_accept_header_selects_the_media_type(ask: Ask, accept: str, kind: str):
    assert (await ask(accept=accept)).headers["content-type"] == kind
