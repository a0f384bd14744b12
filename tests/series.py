"""Values of the gateway's metrics."""

from __future__ import annotations

from gateway.telemetry.metrics import Metrics


def total(metrics: Metrics, name: str, **labels: str) -> float:
    """Return the sum of the samples called `name` whose labels include `labels`: of all APIs, if none is named."""
    samples = [sample for family in metrics.registry.collect() for sample in family.samples if sample.name == name]
    assert samples, f"there is no {name}"
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())
