"""Settings come from the environment, typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from gateway.settings import Settings


def test_the_defaults_are_the_documented_ones():
    settings = Settings()
    assert settings.port == 8998
    assert settings.allow_voice_audio is False
    assert settings.default_voice == "NATF0"


def test_a_name_that_is_read_nowhere_is_unknown():
    assert Settings.unknown(["PATH", "PERSONAPLEX_WARM", "PERSONAPLEX_WARN", "PERSONAPLEX_PREFIX_COLUMNS"]) == [
        "PERSONAPLEX_WARN"
    ]


def test_the_environment_sets_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PERSONAPLEX_MODELS", "/srv/models")
    monkeypatch.setenv("PERSONAPLEX_ALLOW_VOICE_AUDIO", "true")
    monkeypatch.setenv("PERSONAPLEX_TRITON_URL", "triton:8001")
    settings = Settings()
    assert (settings.models, settings.allow_voice_audio, settings.triton_url) == (
        Path("/srv/models"),
        True,
        "triton:8001",
    )


@pytest.mark.parametrize(("name", "value"), [("PORT", "70000"), ("MAX_AUDIO_SECONDS", "0"), ("MAX_STEPS", "many")])
def test_values_that_make_no_sense_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str):
    monkeypatch.setenv(f"PERSONAPLEX_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


@pytest.mark.parametrize("keys", ['[""]', '["good", ""]'])
def test_an_empty_api_key_is_refused(monkeypatch: pytest.MonkeyPatch, keys: str):
    monkeypatch.setenv("PERSONAPLEX_API_KEYS", keys)
    with pytest.raises(ValidationError, match="api_keys"):
        Settings()


@pytest.mark.parametrize(
    ("port", "grpc_port", "listens_on"),
    [(8998, None, 8999), (0, None, 0), (65535, None, 0), (8998, 0, 0), (8998, 50051, 50051), (8998, -1, None)],
)
def test_the_grpc_port_follows_the_other_one(
    monkeypatch: pytest.MonkeyPatch, port: int, grpc_port: int | None, listens_on: int | None
):
    monkeypatch.delenv("PERSONAPLEX_GRPC_PORT")
    assert Settings(port=port, grpc_port=grpc_port).grpc_listens_on == listens_on


def test_a_certificate_comes_with_its_key():
    assert Settings().tls is None
    assert Settings(tls_certificate=Path("a.pem"), tls_key=Path("b.pem")).tls == (Path("a.pem"), Path("b.pem"))
    with pytest.raises(ValidationError, match="go together"):
        Settings(tls_certificate=Path("a.pem"))
