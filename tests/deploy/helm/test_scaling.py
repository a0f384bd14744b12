"""Autoscaling with KEDA and with a HorizontalPodAutoscaler."""

from __future__ import annotations

from typing import Any

import pytest

from tests.deploy.helm.chart import NAME, NAMESPACE, SHARED, render
from tests.deploy.promql import gateway_series, labels, selectors

METRIC = "personaplex_conversations_active"


def scaled(kind: str, **values: Any) -> dict[str, Any]:
    monitoring = {"podMonitor": {"enabled": True}}
    return {
        **SHARED,
        "slots": 32,
        "monitoring": monitoring,
        "autoscaling": {"enabled": True, "kind": kind, "min": 2, "max": 9, **values},
    }


@pytest.mark.parametrize("kind", ["keda", "hpa"])
def test_the_autoscaler_sets_the_number_of_pods(kind: str):
    assert "replicas" not in render(scaled(kind)).one("Deployment")["spec"]
    assert render({**SHARED, "replicas": 3}).one("Deployment")["spec"]["replicas"] == 3


@pytest.mark.parametrize(
    ("slots", "target", "calls"), [(32, 0.7, "22"), (8, 0.5, "4"), (1, 0.7, "1"), (10, 1, "10"), (4, 0.1, "1")]
)
def test_the_target_is_a_share_of_the_slots(slots: int, target: float, calls: str):
    hpa = render({**scaled("hpa", target=target), "slots": slots}).one("HorizontalPodAutoscaler")
    keda = render({**scaled("keda", target=target), "slots": slots}).one("ScaledObject")
    assert hpa["spec"]["metrics"][0]["pods"]["target"] == {"type": "AverageValue", "averageValue": calls}
    assert keda["spec"]["triggers"][0]["metricType"] == "AverageValue"
    assert keda["spec"]["triggers"][0]["metadata"]["threshold"] == calls


def test_keda_queries_the_conversations_of_this_release():
    release = render(scaled("keda"))
    query = release.one("ScaledObject")["spec"]["triggers"][0]["metadata"]["query"]
    (selector,) = selectors(query)
    assert selector.name == METRIC
    assert METRIC in gateway_series()
    monitor = release.one("PodMonitor")["metadata"]["name"]
    assert labels(selector) == {"namespace": NAMESPACE, "job": f"{NAMESPACE}/{monitor}"}


def test_the_metric_of_the_adapter_exists():
    metric = render(scaled("hpa")).one("HorizontalPodAutoscaler")["spec"]["metrics"][0]["pods"]["metric"]["name"]
    assert metric in gateway_series()


def test_both_autoscalers_have_the_same_bounds_and_behavior():
    hpa = render(scaled("hpa", scaleDownSeconds=900)).one("HorizontalPodAutoscaler")["spec"]
    keda = render(scaled("keda", scaleDownSeconds=900)).one("ScaledObject")["spec"]
    assert hpa["scaleTargetRef"]["name"] == keda["scaleTargetRef"]["name"] == NAME
    assert (hpa["minReplicas"], hpa["maxReplicas"]) == (keda["minReplicaCount"], keda["maxReplicaCount"]) == (2, 9)
    behavior = keda["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior == hpa["behavior"]
    assert behavior["scaleUp"]["stabilizationWindowSeconds"] == 0
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] == 900


def test_new_pods_start_before_old_ones_stop():
    strategy = render(SHARED).one("Deployment")["spec"]["strategy"]
    assert strategy["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert render().one("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1
