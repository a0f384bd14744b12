"""A WAV in through HTTP, the reference's tokens and samples out: through real Triton, for two independent oracles."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest

from model_repository.build import build_repository
from tests.conftest import GOLDEN
from tests.end_to_end.conftest import Service, respond, serve
from tests.oracle import checkpoint as oracle

ORACLE = Path(oracle.__file__).with_name("oracle.npz")

PCM16_STEP = 1 / 32768


def check(answer, expected_tokens, expected_user_codes, expected_pcm):
    np.testing.assert_array_equal(answer.text_tokens, expected_tokens[:, 0])
    np.testing.assert_array_equal(answer.agent_codes, expected_tokens[:, 1:9])
    np.testing.assert_array_equal(answer.user_codes, expected_user_codes)
    np.testing.assert_allclose(answer.pcm, expected_pcm.reshape(-1), atol=1e-4)


@pytest.mark.parametrize("voice", ["preset", "recording"])
def test_golden_answer(golden_service: Service, golden, voice):
    chosen = {"voice": "NATF0"}
    if voice == "recording":
        chosen = {"voice_audio": base64.b64encode((GOLDEN / "voice.wav").read_bytes()).decode()}
    with golden_service.client() as client:
        answer = respond(
            client,
            (GOLDEN / "user.wav").read_bytes(),
            text_prompt=(GOLDEN / "prompt.txt").read_text(),
            greedy=True,
            max_steps=50,
            **chosen,
        )
    check(answer, golden["out_tokens"], golden["user_codes"], golden["pcm"])
    assert answer.body["frames"] == 50


def test_golden_answer_as_multipart_and_wav(golden_service: Service, golden):
    with golden_service.client() as client:
        response = client.post(
            "/v1/respond",
            files={"audio": ("user.wav", (GOLDEN / "user.wav").read_bytes(), "audio/wav")},
            data={"text_prompt": (GOLDEN / "prompt.txt").read_text(), "greedy": "true", "max_steps": "50"},
        )
    assert response.status_code == 200
    assert response.headers["content-type"] == "audio/wav"
    samples = np.frombuffer(response.content[44:], "<i2").astype(np.float32) * PCM16_STEP
    np.testing.assert_allclose(samples, golden["pcm"].reshape(-1), atol=1e-4)


def test_second_oracle(tmp_path: Path):
    """PyPI `moshi` 0.2.13 at another geometry; tests/oracle/regenerate.sh makes its outputs anew."""
    oracle.write(tmp_path / "checkpoint")
    build_repository(tmp_path / "checkpoint", tmp_path / "models", slots=2)
    with np.load(ORACLE) as data:
        expected = dict(data)
    frames = len(expected["out_tokens"])
    with serve(tmp_path / "models", allow_voice_audio=True) as service, service.client() as client:
        answer = respond(
            client,
            (GOLDEN / "user.wav").read_bytes(),
            voice_audio=base64.b64encode((GOLDEN / "voice.wav").read_bytes()).decode(),
            text_prompt=oracle.PROMPT,
            greedy=True,
            max_steps=frames,
        )
    check(answer, expected["out_tokens"], expected["user_codes"], expected["pcm"])
