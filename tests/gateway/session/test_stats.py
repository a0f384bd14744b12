"""A conversation's timings, from frames whose times are known."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from opentelemetry.trace import NoOpTracer

from gateway.engine.conversation import Conversation
from gateway.session.caller import Caller
from gateway.session.record import ConversationRecord
from gateway.session.stats import SessionStats
from gateway.telemetry.metrics import Api, Metrics


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(slots=1)


@pytest.fixture
def record(metrics: Metrics) -> ConversationRecord:
    return ConversationRecord("7", Caller(Api.LIVE), "NATF0", metrics, NoOpTracer())


@pytest.fixture
def stats(metrics: Metrics, record: ConversationRecord) -> SessionStats:
    return SessionStats(metrics, record, 0.08, "setup")


@pytest.fixture
async def conversation(converse: Callable[..., Conversation], stats: SessionStats) -> Conversation:
    conversation = converse()
    stats.watch(conversation)
    return conversation


def count(conversation: Conversation, seconds: float, temporal: float = 0.0) -> None:
    conversation.stage_seconds.extend((0.0, temporal, 0.0, 0.0, seconds))


async def test_rtf_is_frame_time_over_audio_time(stats: SessionStats, conversation: Conversation):
    count(conversation, 0.02)
    count(conversation, 0.06)
    assert stats.rtf == pytest.approx(0.5)


async def test_stages_are_medians_and_percentiles_in_milliseconds(stats: SessionStats, conversation: Conversation):
    for index in range(1, 102):
        count(conversation, 0.01, temporal=index / 1000)
    assert stats.stages()["temporal"].median_ms == pytest.approx(51)
    assert stats.stages()["temporal"].p99_ms == pytest.approx(100)
    assert stats.stages()["decode"].median_ms == 0


async def test_a_later_turn_has_statistics_of_its_own(
    stats: SessionStats, conversation: Conversation, metrics: Metrics, record: ConversationRecord
):
    count(conversation, 0.08)
    later = SessionStats(metrics, record, 0.08, "first audio")
    later.watch(conversation)
    assert later.rtf == 0
    count(conversation, 0.02)
    assert later.rtf == pytest.approx(0.25)
    assert stats.rtf == pytest.approx(0.625)


def test_setup_ends_with_the_prompt_and_first_audio_with_the_first_sampled_frame(
    metrics: Metrics, stats: SessionStats, monkeypatch: pytest.MonkeyPatch
):
    times = iter([stats._began + passed for passed in (0.25, 0.75)])
    monkeypatch.setattr("gateway.session.stats.perf_counter", lambda: next(times))
    stats.started(fed=7, cached=3)
    assert (stats.setup_seconds, stats.first_audio_seconds) == (pytest.approx(0.25), pytest.approx(0.25))
    stats.first_audio()
    assert (stats.setup_seconds, stats.first_audio_seconds) == (pytest.approx(0.25), pytest.approx(0.75))
    for name, value in (("setup_seconds_sum", 0.25), ("time_to_first_audio_seconds_sum", 0.75)):
        assert metrics.registry.get_sample_value(f"personaplex_{name}") == pytest.approx(value)
    assert metrics.registry.get_sample_value("personaplex_prefill_columns_total") == 7


async def test_a_conversation_without_frames_has_no_rtf(
    stats: SessionStats, conversation: Conversation, metrics: Metrics
):
    stats.finish()
    assert stats.rtf == 0
    assert metrics.registry.get_sample_value("personaplex_rtf_count") == 0
