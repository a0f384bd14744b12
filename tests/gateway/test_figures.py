"""A conversation's timings, from frames whose times are known."""

from __future__ import annotations

import numpy as np
import pytest

from gateway.conversation.conversation import AgentFrame, StageSeconds
from gateway.figures import Figures
from gateway.metrics import Metrics


def frame(index: int, seconds: float, temporal: float = 0.0) -> AgentFrame:
    stages = StageSeconds(temporal=temporal)
    return AgentFrame(index, 3, "", np.zeros(8, np.int64), np.zeros(1920, np.float32), None, stages, seconds)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(slots=1)


@pytest.fixture
def figures(metrics: Metrics) -> Figures:
    return Figures(metrics, frame_seconds=0.08)


def test_rtf_is_frame_time_over_audio_time_and_leaves_the_setup_out(figures: Figures):
    for index, seconds in enumerate([5.0, 0.02, 0.06]):
        figures.observe(frame(index, seconds))
    assert figures.rtf == pytest.approx(0.5)


def test_stages_are_medians_and_percentiles_in_milliseconds(figures: Figures):
    figures.observe(frame(0, 1.0, temporal=1.0))
    for index in range(1, 102):
        figures.observe(frame(index, 0.01, temporal=index / 1000))
    assert figures.stages()["temporal"].median_ms == pytest.approx(51)
    assert figures.stages()["temporal"].p99_ms == pytest.approx(100)
    assert figures.stages()["decode"].median_ms == 0


def test_first_audio_is_the_first_frame_that_was_drawn(figures: Figures, monkeypatch: pytest.MonkeyPatch):
    times = iter([figures._began + passed for passed in (0.25, 0.75, 1.5)])
    monkeypatch.setattr("gateway.figures.perf_counter", lambda: next(times))
    figures.observe(frame(0, 0.25))
    assert (figures.setup_seconds, figures.first_audio_seconds) == (pytest.approx(0.25), pytest.approx(0.25))
    figures.observe(frame(1, 0.5))
    figures.observe(frame(2, 0.75))
    assert (figures.setup_seconds, figures.first_audio_seconds) == (pytest.approx(0.25), pytest.approx(0.75))


def test_a_conversation_without_frames_has_no_rtf(figures: Figures, metrics: Metrics):
    figures.finish()
    assert figures.rtf == 0
    assert metrics.registry.get_sample_value("personaplex_rtf_count") == 0
