"""A conversation's timings, from frames whose times are known."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.engine.conversation import AgentFrame, StageSeconds
from gateway.session.stats import SessionStats
from gateway.telemetry.metrics import Metrics


def frame(index: int, seconds: float, temporal: float = 0.0) -> AgentFrame:
    stages = StageSeconds(temporal=temporal)
    return AgentFrame(index, 3, "", np.zeros(8, np.int64), np.zeros(1920, np.float32), None, stages, seconds)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(slots=1)


@pytest.fixture
def stats(metrics: Metrics) -> SessionStats:
    return SessionStats(metrics, frame_seconds=0.08)


def test_rtf_is_frame_time_over_audio_time_and_leaves_the_setup_out(stats: SessionStats):
    for index, seconds in enumerate([5.0, 0.02, 0.06]):
        stats.observe(frame(index, seconds))
    assert stats.rtf == pytest.approx(0.5)


def test_stages_are_medians_and_percentiles_in_milliseconds(stats: SessionStats):
    stats.observe(frame(0, 1.0, temporal=1.0))
    for index in range(1, 102):
        stats.observe(frame(index, 0.01, temporal=index / 1000))
    assert stats.stages()["temporal"].median_ms == pytest.approx(51)
    assert stats.stages()["temporal"].p99_ms == pytest.approx(100)
    assert stats.stages()["decode"].median_ms == 0


def test_first_audio_is_the_first_frame_that_was_drawn(stats: SessionStats, monkeypatch: pytest.MonkeyPatch):
    times = iter([stats._began + passed for passed in (0.25, 0.75, 1.5)])
    monkeypatch.setattr("gateway.session.stats.perf_counter", lambda: next(times))
    stats.observe(frame(0, 0.25))
    assert (stats.setup_seconds, stats.first_audio_seconds) == (pytest.approx(0.25), pytest.approx(0.25))
    stats.observe(frame(1, 0.5))
    stats.observe(frame(2, 0.75))
    assert (stats.setup_seconds, stats.first_audio_seconds) == (pytest.approx(0.25), pytest.approx(0.75))


def test_a_conversation_without_frames_has_no_rtf(stats: SessionStats, metrics: Metrics):
    stats.finish()
    assert stats.rtf == 0
    assert metrics.registry.get_sample_value("personaplex_rtf_count") == 0
