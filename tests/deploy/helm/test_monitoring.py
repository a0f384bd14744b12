"""PodMonitor, alerts and dashboard of the chart."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from gateway.session.events import Reason
from gateway.telemetry.metrics import REFUSALS
from tests.deploy.helm.chart import CHART, NAME, NAMESPACE, SHARED, render
from tests.deploy.promql import counts, gateway_series, labels, rated, selectors

ROOT = Path(__file__).parents[3]

ON: dict[str, Any] = {
    "monitoring": {
        "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "rules": {"enabled": True, "labels": {"release": "prometheus"}},
        "dashboard": {"enabled": True},
    }
}
ENVOY: dict[str, Any] = {"enabled": True, "parentRefs": [{"name": "outside"}], "envoy": {"enabled": True}}


def rules(**values: Any) -> list[dict[str, Any]]:
    (group,) = render({**ON, **values}).one("PrometheusRule")["spec"]["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def test_no_custom_resources_by_default():
    assert {manifest["apiVersion"].partition("/")[0] for manifest in render().manifests} <= {
        *("v1", "apps", "batch", "policy", "networking.k8s.io", "rbac.authorization.k8s.io"),
    }


@pytest.mark.parametrize(
    ("values", "ports"),
    [({}, ["http", "triton-metrics"]), ({"device": "cpu", "models": {"variant": "fp32"}}, ["http"])],
)
def test_the_pod_monitor_scrapes_the_metrics_ports(values: dict[str, Any], ports: list[str]):
    release = render({**ON, **values})
    endpoints = release.one("PodMonitor")["spec"]["podMetricsEndpoints"]
    assert [endpoint["port"] for endpoint in endpoints] == ports
    named = {port["name"] for container in release.containers.values() for port in container.get("ports", [])}
    assert set(ports) <= named
    labels = release.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert release.one("PodMonitor")["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_the_gateway_is_scraped_over_tls_if_it_uses_tls():
    gateway, triton = render({**ON, "tls": {"secretName": "c"}}).one("PodMonitor")["spec"]["podMetricsEndpoints"]
    assert gateway["scheme"] == "https"
    assert "scheme" not in triton


def test_monitors_and_rules_have_the_configured_labels():
    release = render(ON)
    for kind in ("PodMonitor", "PrometheusRule"):
        assert release.one(kind)["metadata"]["labels"]["release"] == "prometheus"


@pytest.mark.parametrize("pool", [False, True])
def test_alerts_use_existing_series_of_this_release(pool: bool):
    series = gateway_series()
    mine = {"namespace": NAMESPACE, "job": f"{NAMESPACE}/{NAME}"}
    found = rules(**SHARED, pool={"enabled": pool})
    assert found
    for rule in found:
        asked = selectors(rule["expr"])
        assert asked
        for selector in asked:
            if selector.name.startswith("kube_"):
                continue
            assert selector.name in series
            assert labels(selector).items() >= mine.items()
            assert labels(selector).keys() - mine.keys() <= series[selector.name]
            assert (selector.name in rated(rule["expr"])) == counts(selector.name)


def test_alerts_on_kubernetes_objects_name_those_of_this_release():
    release = render(ON)
    asked = {selector.name: labels(selector) for rule in rules() for selector in selectors(rule["expr"])}
    restarts, failed = asked["kube_pod_container_status_restarts_total"], asked["kube_job_failed"]
    assert restarts["namespace"] == failed["namespace"] == NAMESPACE
    assert re.fullmatch(failed["job_name"], release.one("Job")["metadata"]["name"])
    # A pod of the Deployment has its name, the hash of its template and one of its own.
    assert re.fullmatch(restarts["pod"], f"{NAME}-7d4b9c6f5d-x2x8k")
    assert not re.fullmatch(restarts["pod"], f"{NAME}-pool-7d4b9c6f5d-x2x8k")
    assert set(restarts["container"].split("|")) <= release.containers.keys()


@pytest.mark.parametrize("values", [{"pool": {"enabled": True}}, {"route": ENVOY}], ids=["haproxy", "envoy"])
def test_attempts_that_are_repeated_on_another_pod_refuse_nobody(values: dict[str, Any]):
    def expression(**values: Any) -> str:
        (rule,) = [rule for rule in rules(**values) if rule["alert"] == "PersonaPlexConversationsRefused"]
        return str(rule["expr"])

    assert [selector.name for selector in selectors(expression())] == ["personaplex_refused_total"]
    pooled = {selector.name for selector in selectors(expression(**SHARED, **values))}
    assert pooled >= {"personaplex_refused_total", "personaplex_slots", "personaplex_conversations_active"}


def test_slots_of_draining_pods_are_not_free():
    (rule,) = [rule for rule in rules() if rule["alert"] == "PersonaPlexNearlyFull"]
    assert [selector.name for selector in selectors(rule["expr"])].count("personaplex_draining") == 2


def test_alerts_use_existing_reasons():
    reasons = {reason.value for reason in Reason} | set(REFUSALS)
    asked = [
        labels(selector)["reason"]
        for rule in rules()
        for selector in selectors(rule["expr"])
        if "reason" in labels(selector)
    ]
    assert asked
    assert {reason for each in asked for reason in each.split("|")} <= reasons


def test_alerts_have_a_severity_and_a_summary():
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert rule["for"].endswith("m")
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"].endswith(".")


def test_each_alert_has_a_runbook():
    values = {**ON["monitoring"], "rules": {"enabled": True, "runbooks": "https://docs.example.com/operations.md"}}
    (group,) = render({"monitoring": values}).one("PrometheusRule")["spec"]["groups"]
    headings = re.findall(r"^### (\w+)$", (ROOT / "docs/operations.md").read_text(), re.MULTILINE)
    linked = [rule["annotations"]["runbook_url"] for rule in group["rules"]]
    assert linked == [f"https://docs.example.com/operations.md#{heading.lower()}" for heading in headings]
    assert all("runbook_url" not in rule["annotations"] for rule in rules())


def test_the_config_map_contains_the_dashboard():
    (text,) = render(ON).one("ConfigMap")["data"].values()
    assert text == (CHART / "dashboards" / "personaplex.json").read_text()
    assert render(ON).one("ConfigMap")["metadata"]["labels"]["grafana_dashboard"] == "1"
