"""Voices that are added while the page is open."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect

from gateway.session.persona import preset_of_codes
from gateway.voices.registry import VoiceRegistry
from gateway.voices.store import VoiceStore
from tests.page.browser import Visit
from tests.page.conftest import Gateway, running

# The page requests the voices so often.
EVERY_MS = 15_000


@pytest.fixture
def gateway(tiny_models: Path, tmp_path: Path) -> Iterator[Gateway]:
    """A gateway with a copy of the models, whose voices the tests may change."""
    models = shutil.copytree(tiny_models, tmp_path / "models", ignore=shutil.ignore_patterns("triton"))
    with running(models) as gateway:
        yield gateway


@pytest.fixture
def add(gateway: Gateway) -> Callable[[str], None]:
    manifest = gateway.engine.manifest
    store = VoiceStore(VoiceRegistry(manifest))

    def put(name: str) -> None:
        store.add(name, preset_of_codes(np.ones((40, 8), np.int64), manifest), "recording")

    return put


def test_added_and_removed_voices_appear_without_a_reload(
    visit: Visit, gateway: Gateway, add: Callable[[str], None]
) -> None:
    page = visit.page
    page.clock.install()
    page.reload()
    page.get_by_role("radio", name="Natural, male 1").check()
    expect(page.get_by_text("Added")).to_have_count(0)
    add("ANA")
    ana = page.get_by_role("radio", name="Added ANA")
    page.clock.fast_forward(EVERY_MS)
    expect(ana).to_be_visible()
    expect(page.get_by_role("radio", name="Natural, male 1")).to_be_checked()
    ana.check()
    assert visit.text("#voice-name") == "ANA"
    VoiceStore(VoiceRegistry(gateway.engine.manifest)).remove("ANA")
    page.clock.fast_forward(EVERY_MS)
    expect(ana).to_have_count(0)
    expect(page.locator("#voice-name")).to_have_text(re.compile("NATF0"))


def test_a_voice_with_a_long_name_fits(visit_to: Callable[..., Visit], gateway: Gateway, add: Callable[[str], None]):
    add("x" * 64)
    visit = visit_to(gateway.url, viewport={"width": 360, "height": 740})
    expect(visit.page.get_by_role("radio", name="Added")).to_be_visible()
    # The page's policy forbids evaluating text in the page; bounding boxes are available.
    chip = visit.page.locator(".chip", has_text="xxx").bounding_box()
    assert chip is not None
    assert chip["x"] >= 0
    assert chip["x"] + chip["width"] <= 360


def test_a_call_outlives_its_voice(visit: Visit, gateway: Gateway, add: Callable[[str], None]) -> None:
    add("ANA")
    visit.page.reload()
    visit.page.get_by_role("radio", name="Added ANA").check()
    visit.start()
    assert "ANA" in visit.text("#call-note")
    VoiceStore(VoiceRegistry(gateway.engine.manifest)).remove("ANA")
    visit.transcript_grows()
