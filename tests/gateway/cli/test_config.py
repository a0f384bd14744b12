"""`personaplex config`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateway.cli import run
from gateway.cli.config import markdown, settings
from gateway.settings import Settings

SETTINGS_PAGE = Path(__file__).parents[3] / "docs" / "settings.md"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSONAPLEX_GRPC_PORT", "0")


def test_every_setting_has_its_value_source_and_description(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PERSONAPLEX_IDLE_SECONDS", "12.5")
    assert run(["config", "--json"]) == 0
    found = {each["variable"]: each for each in json.loads(capsys.readouterr().out)}
    assert len(found) == len(Settings.model_fields)
    assert all(each["description"] for each in found.values())
    idle = found["PERSONAPLEX_IDLE_SECONDS"]
    assert (idle["value"], idle["default"], idle["source"]) == (12.5, 30.0, "environment")
    port = found["PERSONAPLEX_PORT"]
    assert (port["value"], port["default"], port["source"]) == (8998, 8998, "default")


def test_only_what_the_environment_sets(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "--changed"]) == 0
    assert capsys.readouterr().out.startswith("PERSONAPLEX_GRPC_PORT=0  (environment)\n    port of the gRPC API")


def test_keys_are_not_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PERSONAPLEX_API_KEYS", '["alpha", "beta"]')
    assert run(["config"]) == 0
    shown = capsys.readouterr().out
    assert 'PERSONAPLEX_API_KEYS=["(2 hidden)"]' in shown
    assert "alpha" not in shown


def test_an_invalid_value_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PERSONAPLEX_PORT", "70000")
    assert run(["config"]) == 2
    assert "PERSONAPLEX_PORT: Input should be less than or equal to 65535" in capsys.readouterr().err


def test_the_documentation_has_the_same_settings() -> None:
    """`personaplex config --markdown > docs/settings.md` writes the page."""
    assert SETTINGS_PAGE.read_text() == markdown(settings({}))
