"""From records to figures: what counts as missing, late, an underrun, and a run that did not pass."""

from __future__ import annotations

import pytest

from loadtest.figures import Figures, Spread, expected_frames, underruns
from loadtest.record import FRAME_SECONDS, Face, Outcome, Record


def record(expected: int = 10, latency: float = 0.02, **fields: object) -> Record:
    """A caller of `expected` frames, all answered after `latency`."""
    sent = [u * FRAME_SECONDS for u in range(expected)]
    plain = {
        "outcome": Outcome.COMPLETED,
        "sent": sent,
        "late": [0.001] * expected,
        "came": [moment + latency for moment in sent],
        "frames": expected,
    }
    return Record(Face.GRPC, 0, expected, **{**plain, **fields})  # type: ignore[arg-type]


def refused(expected: int = 10) -> Record:
    return Record(Face.GRPC, 1, expected, Outcome.REFUSED, "full")


def test_a_good_run_passes():
    figures = Figures.of([record(), record()])
    assert figures.faults() == []
    assert (figures.conversations, figures.completed, figures.expected, figures.received) == (2, 2, 20, 20)
    assert figures.latency is not None
    assert figures.latency.p50 == pytest.approx(20)


def test_a_refused_caller_stays_in_the_denominator():
    figures = Figures.of([record(), refused()])
    assert (figures.expected, figures.received, figures.missing, figures.refused) == (20, 10, 10, 1)
    assert figures.unsent == 0
    assert len(figures.faults()) == 2


def test_a_frame_that_never_came_is_missing_and_has_no_latency():
    cut = record()
    cut.came, cut.frames = cut.came[:7], 7
    figures = Figures.of([cut])
    assert figures.missing == 3
    assert figures.latency is not None
    assert figures.latency.max == pytest.approx(20)
    assert figures.faults()


def test_what_the_client_did_not_send_is_missing_too():
    cut = record()
    cut.sent, cut.came, cut.frames = cut.sent[:8], cut.came[:8], 8
    figures = Figures.of([cut])
    assert (figures.missing, figures.unsent) == (2, 2)


def test_nothing_measured_is_none_not_zero():
    figures = Figures.of([refused()])
    assert figures.latency is None
    assert figures.first_audio is None
    assert Spread.of([None]) is None


def test_late_is_more_than_80_ms_after_being_asked_for():
    figures = Figures.of([record(latency=0.0799), record(latency=0.0801)])
    assert (figures.late, figures.late_share) == (10, 0.5)


def test_the_99th_percentile_and_late_frames_fail_a_run():
    assert [fault.split(":")[0] for fault in Figures.of([record(latency=0.09)]).faults()] == [
        "frame latency",
        "10 of 10 frames are late",
    ]


def test_one_late_frame_in_a_thousand_is_one_too_many():
    def run(frames: int) -> list[str]:
        one = record(frames)
        one.came[5] += 0.1
        return Figures.of([one]).faults()

    assert run(1000)
    assert not run(1001)


def test_a_failed_conversation_fails_the_run_even_with_all_its_frames():
    assert Figures.of([record(outcome=Outcome.FAILED, reason="Malformed")]).faults()


def test_playback_runs_dry_when_a_frame_is_100_ms_behind():
    due = [FRAME_SECONDS * i for i in range(4)]
    assert underruns([]) == 0
    assert underruns(due) == 0
    assert underruns([due[0], due[1] + 0.099, due[2], due[3]]) == 0
    assert underruns([due[0], due[1] + 0.101, due[2], due[3] + 0.2]) == 2


def test_a_client_that_is_late_itself_is_flagged():
    assert not Figures.of([record(late=[0.079] * 10)]).slow_client
    assert Figures.of([record(late=[0.081] * 10)]).slow_client


@pytest.mark.parametrize(("seconds", "frames"), [(0.24, 3), (0.23, 2), (60, 750), (1, 12)])
def test_expected_frames_are_whole(seconds: float, frames: int):
    assert expected_frames(seconds) == frames


def test_records_survive_json():
    before = record(setup=0.1, dropped=2)
    assert Record.of_json(before.to_json()).to_json() == before.to_json()
    assert Record.of_json(before.to_json()).face is Face.GRPC
