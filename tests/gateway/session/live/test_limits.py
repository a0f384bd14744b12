"""Settings of the limits of live sessions."""

from __future__ import annotations

from dataclasses import asdict

from gateway.session.limits import LiveLimits
from gateway.settings import Settings


def test_the_settings_have_the_same_defaults() -> None:
    assert LiveLimits.of(Settings()) == LiveLimits()


def test_each_limit_has_its_setting() -> None:
    settings = Settings(
        idle_seconds=1, max_call_seconds=2, warn_seconds=3, input_frames=4, output_frames=5, live_speed=6
    )
    assert asdict(LiveLimits.of(settings)) == {
        "idle": 1, "duration": 2, "warn": 3, "input_frames": 4, "output_frames": 5, "speed": 6,
        "lead_frames": 4, "early_frames": 4, "burst": 0.0,
    }  # fmt: skip
