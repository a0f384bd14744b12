"""Settings are read from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from gateway.settings import Settings


def test_defaults():
    settings = Settings()
    assert settings.port == 8998
    assert settings.allow_voice_audio is False
    assert settings.default_voice == "NATF0"


def test_unknown_names_with_the_prefix_are_found():
    assert Settings.unknown(["PATH", "PERSONAPLEX_WARM", "PERSONAPLEX_WARN", "PERSONAPLEX_PREFIX_COLUMNS"]) == [
        "PERSONAPLEX_WARN"
    ]


def test_the_environment_sets_values(monkeypatch: pytest.MonkeyPatch):
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
def test_values_out_of_bounds_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str):
    monkeypatch.setenv(f"PERSONAPLEX_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


@pytest.mark.parametrize("keys", ['[""]', '["good", ""]'])
def test_an_empty_api_key_is_refused(monkeypatch: pytest.MonkeyPatch, keys: str):
    monkeypatch.setenv("PERSONAPLEX_API_KEYS", keys)
    with pytest.raises(ValidationError, match="api_keys"):
        Settings()


@pytest.mark.parametrize(
    ("port", "grpc_port", "expected"),
    [(8998, None, 8999), (0, None, 0), (65535, None, 0), (8998, 0, 0), (8998, 50051, 50051), (8998, -1, None)],
)
def test_the_default_grpc_port_is_the_next_one(
    monkeypatch: pytest.MonkeyPatch, port: int, grpc_port: int | None, expected: int | None
):
    monkeypatch.delenv("PERSONAPLEX_GRPC_PORT")
    assert Settings(port=port, grpc_port=grpc_port).grpc_listen_port == expected


def test_certificate_and_key_are_set_together():
    assert Settings().tls is None
    assert Settings(tls_certificate=Path("a.pem"), tls_key=Path("b.pem")).tls == (Path("a.pem"), Path("b.pem"))
    with pytest.raises(ValidationError, match="expected both tls_certificate and tls_key"):
        Settings(tls_certificate=Path("a.pem"))
