"""Statistics from records: what counts as missing, late, an underrun, and why a run does not pass."""

from __future__ import annotations

import pytest

from loadtest.record import FRAME_SECONDS, Api, Outcome, Record
from loadtest.stats import LoadStats, Percentiles, expected_frames, underruns


def record(expected: int = 10, latency: float = 0.02, **fields: object) -> Record:
    """A user with `expected` frames, all answered after `latency`."""
    sent = [u * FRAME_SECONDS for u in range(expected)]
    plain = {
        "outcome": Outcome.COMPLETED,
        "sent": sent,
        "late": [0.001] * expected,
        "received": [moment + latency for moment in sent],
        "frames": expected,
    }
    return Record(Api.GRPC, 0, expected, **{**plain, **fields})  # type: ignore[arg-type]


def refused(expected: int = 10) -> Record:
    return Record(Api.GRPC, 1, expected, Outcome.REFUSED, "full")


def test_a_good_run_passes():
    stats = LoadStats.of([record(), record()])
    assert stats.faults() == []
    assert (stats.conversations, stats.completed, stats.expected, stats.received) == (2, 2, 20, 20)
    assert stats.latency is not None
    assert stats.latency.p50 == pytest.approx(20)


def test_the_frames_of_a_refused_user_are_missing():
    stats = LoadStats.of([record(), refused()])
    assert (stats.expected, stats.received, stats.missing, stats.refused) == (20, 10, 10, 1)
    assert stats.unsent == 0
    assert len(stats.faults()) == 2


def test_a_frame_that_was_not_received_is_missing_and_has_no_latency():
    cut = record()
    cut.received, cut.frames = cut.received[:7], 7
    stats = LoadStats.of([cut])
    assert stats.missing == 3
    assert stats.latency is not None
    assert stats.latency.max == pytest.approx(20)
    assert stats.faults()


def test_frames_the_client_did_not_send_are_missing_and_unsent():
    cut = record()
    cut.sent, cut.received, cut.frames = cut.sent[:8], cut.received[:8], 8
    stats = LoadStats.of([cut])
    assert (stats.missing, stats.unsent) == (2, 2)


def test_without_measurements_percentiles_are_none():
    stats = LoadStats.of([refused()])
    assert stats.latency is None
    assert stats.first_audio is None
    assert Percentiles.of([None]) is None


def test_late_is_more_than_80_ms_after_the_user_frame():
    stats = LoadStats.of([record(latency=0.0799), record(latency=0.0801)])
    assert (stats.late, stats.late_share) == (10, 0.5)


def test_the_99th_percentile_and_late_frames_fail_a_run():
    assert [fault.split(":")[0] for fault in LoadStats.of([record(latency=0.09)]).faults()] == [
        "frame latency",
        "10 of 10 frames are late",
    ]


def test_one_late_frame_in_a_thousand_fails_a_run():
    def run(frames: int) -> list[str]:
        one = record(frames)
        one.received[5] += 0.1
        return LoadStats.of([one]).faults()

    assert run(1000)
    assert not run(1001)


def test_a_failed_conversation_fails_the_run_even_with_all_its_frames():
    assert LoadStats.of([record(outcome=Outcome.FAILED, reason="Malformed")]).faults()


def test_an_underrun_is_a_frame_100_ms_behind():
    due = [FRAME_SECONDS * i for i in range(4)]
    assert underruns([]) == 0
    assert underruns(due) == 0
    assert underruns([due[0], due[1] + 0.099, due[2], due[3]]) == 0
    assert underruns([due[0], due[1] + 0.101, due[2], due[3] + 0.2]) == 2


def test_a_client_that_is_late_itself_is_flagged():
    assert not LoadStats.of([record(late=[0.079] * 10)]).slow_client
    assert LoadStats.of([record(late=[0.081] * 10)]).slow_client


@pytest.mark.parametrize(("seconds", "frames"), [(0.24, 3), (0.23, 2), (60, 750), (1, 12)])
def test_expected_frames_are_whole(seconds: float, frames: int):
    assert expected_frames(seconds) == frames


def test_records_survive_json():
    before = record(setup=0.1, dropped=2)
    assert Record.from_json(before.to_json()).to_json() == before.to_json()
    assert Record.from_json(before.to_json()).api is Api.GRPC
