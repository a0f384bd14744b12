"""Our histograms against prometheus_client's own, and on the page."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as Reference

from gateway.telemetry.histogram import HistogramFamily

BOUNDS = (0.0, 0.01, 0.08, 1.0)


@given(st.lists(st.one_of(st.sampled_from(BOUNDS), st.floats(0, 3))))
def test_it_counts_as_the_library_does(values: list[float]):
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    histogram = HistogramFamily("h", "help", BOUNDS, ours).of()
    reference = Reference("h", "help", buckets=BOUNDS, registry=theirs)
    for value in values:
        histogram.observe(value)
        reference.observe(value)
    for bound in ("0.0", "0.01", "0.08", "1.0", "+Inf"):
        name, labels = "h_bucket", {"le": bound}
        assert ours.get_sample_value(name, labels) == theirs.get_sample_value(name, labels)
    for name in ("h_sum", "h_count"):
        assert ours.get_sample_value(name) == theirs.get_sample_value(name)


def test_each_value_of_a_label_has_its_own():
    registry = CollectorRegistry()
    family = HistogramFamily("h", "help", BOUNDS, registry, "stage", ("encode", "decode"))
    family.of("encode").observe(0.5)
    assert registry.get_sample_value("h_count", {"stage": "encode"}) == 1
    assert registry.get_sample_value("h_count", {"stage": "decode"}) == 0
