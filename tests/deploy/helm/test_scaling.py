"""Autoscaling with KEDA and with a HorizontalPodAutoscaler."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.deletion_cost import ANNOTATION, DeletionCost
from gateway.kubernetes import TokenFile
from gateway.telemetry.metrics import Metrics
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
    monitor = release.one("PodMonitor")["metadata"]["name"]
    active, draining = selectors(query)
    assert (active.name, draining.name) == (METRIC, "personaplex_draining")
    for selector in (active, draining):
        assert selector.name in gateway_series()
        assert labels(selector) == {"namespace": NAMESPACE, "job": f"{NAMESPACE}/{monitor}"}


def test_without_an_answer_of_prometheus_keda_keeps_the_number_of_pods():
    """KEDA takes an empty result for 0 by default."""
    assert render(scaled("keda")).one("ScaledObject")["spec"]["triggers"][0]["metadata"]["ignoreNullValues"] == "false"


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


def test_only_the_container_of_the_deletion_cost_has_a_token():
    shared = {"models": {"volume": {"existingClaim": "weights"}}}
    assert (render(shared).of("Role"), render(shared).of("RoleBinding")) == ([], [])
    release = render({**shared, "autoscaling": {"podDeletionCost": True}})
    assert release.one("Role")["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["patch"]}]
    binding = release.one("RoleBinding")
    assert binding["roleRef"]["name"] == release.one("Role")["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}]
    assert release.pod["automountServiceAccountToken"] is False
    with_token = {
        name
        for name, container in release.containers.items()
        if "token" in {mount["name"] for mount in container["volumeMounts"]}
    }
    assert with_token == {"deletion-cost"}
    assert release.one("NetworkPolicy")["spec"]["egress"] == [{"ports": [{"port": 443}, {"port": 6443}]}]


def test_the_deletion_cost_is_the_number_of_conversations(tmp_path: Path):
    command = render({"autoscaling": {"podDeletionCost": True}}).containers["deletion-cost"]["command"]
    assert command[-1] == DeletionCost.__module__
    metrics, patches = Metrics(4), list[tuple[str, str, dict[str, Any]]]()
    (tmp_path / "token").write_text("first\n")

    def patch(request: httpx.Request) -> httpx.Response:
        assert (request.method, request.headers["content-type"]) == ("PATCH", "application/merge-patch+json")
        patches.append((request.url.path, request.headers["authorization"], json.loads(request.content)))
        return httpx.Response(500 if len(patches) == 2 else 200)

    gateway = httpx.Client(
        base_url="http://gateway", transport=httpx.MockTransport(lambda _: httpx.Response(200, content=metrics.text()))
    )
    kubernetes = httpx.Client(
        base_url="https://kubernetes", transport=httpx.MockTransport(patch), auth=TokenFile(tmp_path / "token")
    )
    cost = DeletionCost(gateway, kubernetes, "voice", "calls-1")
    cost.update()
    cost.update()
    metrics.active.set(3)
    (tmp_path / "token").write_text("second\n")
    with pytest.raises(httpx.HTTPStatusError):
        cost.update()
    cost.update()
    path = "/api/v1/namespaces/voice/pods/calls-1"
    annotations = [content["metadata"]["annotations"] for _, _, content in patches]
    assert [(path, token) for path, token, _ in patches] == [
        (path, "Bearer first"),
        (path, "Bearer second"),
        (path, "Bearer second"),
    ]
    assert annotations == [{ANNOTATION: "0"}, {ANNOTATION: "3"}, {ANNOTATION: "3"}]
