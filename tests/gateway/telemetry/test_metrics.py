"""The metrics page: parsed strictly, linted as promtool does, and complete."""

from __future__ import annotations

import math
import re
from itertools import product

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.telemetry.metrics import REFUSALS, Api, Metrics
from tests.series import total

SLOTS = 3
SAMPLE = re.compile(r'(?P<name>[a-z][a-z0-9_]*)(?:\{(?P<labels>(?:[a-z_]+="[^"\\\n]*",?)+)\})? (?P<value>\S+)\Z')
# promlint's lists (prometheus/client_golang, prometheus/testutil/promlint).
ABBREVIATIONS = {"s", "ms", "us", "ns", "sec", "b", "kb", "mb", "gb", "tb", "pb", "m", "h", "d"}
NON_BASE_UNITS = {
    *("milliseconds", "microseconds", "nanoseconds", "minutes", "hours", "days", "weeks"),
    *("kilobytes", "megabytes", "gigabytes", "bits", "percent", "celsius_millis"),
}


@pytest.fixture
def metrics() -> Metrics:
    """After three batches, one of whose two live frames was late."""
    metrics = Metrics(SLOTS)
    metrics.frames.inc(3)
    for size, seconds in enumerate((0.05, 0.09), 2):
        for stage in (
            metrics.frame_seconds,
            metrics.of[Api.LIVE].input_to_output_seconds,
            metrics.encode,
            metrics.temporal,
        ):
            stage.observe(seconds)
        metrics.batch_size.observe(size)
        metrics.input_queue_frames.observe(size)
    metrics.of[Api.LIVE].late_frames.inc()
    metrics.prefill_steps.inc(7)
    metrics.cached_steps.inc(30)
    return metrics


@pytest.fixture
def page(metrics: Metrics) -> str:
    return metrics.text().decode()


def families(page: str) -> dict[str, str]:
    """Type by name, as declared; fails if a family is declared twice, without HELP, or its samples stand elsewhere."""
    kinds: dict[str, str] = {}
    documented: str | None = None
    current = ""
    for line in page.splitlines():
        if line.startswith("# HELP "):
            _, _, documented, text = line.split(" ", 3)
            assert text.strip(), line
        elif line.startswith("# TYPE "):
            _, _, current, kind = line.split(" ")
            assert documented == current, f"{current} has no HELP"
            assert current not in kinds, f"{current} is declared twice"
            kinds[current] = kind
        else:
            found = SAMPLE.match(line)
            assert found, f"not a sample: {line!r}"
            float(found["value"])
            suffixes = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
            allowed = [current + suffix for suffix in suffixes.get(kinds[current], ("",))]
            assert found["name"] in allowed, f"{found['name']} under {current}"
    return kinds


def test_every_line_belongs_to_a_documented_family(page: str):
    assert page.endswith("\n")
    assert len(families(page)) >= 17


def test_no_series_is_there_twice(page: str):
    series = [line.rpartition(" ")[0] for line in page.splitlines() if not line.startswith("#")]
    assert len(series) == len(set(series))


def test_names_follow_the_conventions(page: str):
    for name, kind in families(page).items():
        words = name.split("_")
        assert words[0] == "personaplex"
        assert name.endswith("_total") == (kind == "counter"), name
        assert kind != "untyped"
        assert not {"counter", "gauge", "histogram", "summary"} & set(words), name
        assert not name.endswith(("_bucket", "_sum", "_count", "_info", "_created")), name
        assert not ABBREVIATIONS & set(words[1:]), name
        assert not NON_BASE_UNITS & set(words), name


def test_reserved_labels_are_where_they_belong(page: str):
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            assert ("le" in sample.labels) == sample.name.endswith("_bucket")
            assert not {"quantile", "job", "instance"} & set(sample.labels)


def test_buckets_add_up(page: str):
    for family in text_string_to_metric_families(page):
        if family.type != "histogram":
            continue
        series: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
        counts = {}
        for sample in family.samples:
            key = tuple(sorted((name, value) for name, value in sample.labels.items() if name != "le"))
            if "le" in sample.labels:
                series.setdefault(key, []).append((float(sample.labels["le"]), sample.value))
            elif sample.name.endswith("_count"):
                counts[key] = sample.value
        assert set(series) == set(counts)
        for key, buckets in series.items():
            bounds, values = zip(*buckets, strict=True)
            assert list(bounds) == sorted(bounds)
            assert bounds[-1] == math.inf
            assert list(values) == sorted(values)
            assert values[-1] == counts[key]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("personaplex_frames_total", 3),
        ("personaplex_frame_seconds_count", 2),
        ("personaplex_frame_seconds_sum", 0.14),
        ("personaplex_input_to_output_seconds_count", 2),
        ("personaplex_late_frames_total", 1),
        ("personaplex_input_queue_frames_sum", 5),
        ("personaplex_batch_conversations_sum", 5),
        ("personaplex_batch_conversations_count", 2),
        ("personaplex_slots", SLOTS),
        ("personaplex_dropped_frames_total", 0),
        ("personaplex_gap_frames_total", 0),
        ("personaplex_prefill_columns_total", 7),
        ("personaplex_prefill_cached_columns_total", 30),
        ("personaplex_conversations_active", 0),
        ("personaplex_setup_seconds_count", 0),
        ("personaplex_time_to_first_audio_seconds_count", 0),
        ("personaplex_rtf_count", 0),
    ],
)
def test_values(metrics: Metrics, name: str, value: float):
    assert total(metrics, name) == pytest.approx(value)


def test_80_ms_is_a_bucket_of_its_own_neighbourhood(page: str):
    for name in ("personaplex_frame_seconds", "personaplex_input_to_output_seconds"):
        label = 'api="live",' if name.startswith("personaplex_input") else ""
        counts = {
            edge: f'{name}_bucket{{{label}le="{edge}"}} {count}\n' for edge, count in (("0.08", 1.0), ("0.09", 2.0))
        }
        assert all(line in page for line in counts.values())


def test_every_refusal_has_a_series_before_its_first_event():
    registry = Metrics(1).registry
    for api, reason in product(Api, REFUSALS):
        assert registry.get_sample_value("personaplex_refused_total", {"api": api, "reason": reason}) == 0
