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
