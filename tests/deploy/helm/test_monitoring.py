"""Prometheus finds the figures, alerts ask for series that exist, and Grafana gets the dashboard."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.session.events import Reason
from gateway.telemetry.metrics import REFUSALS
from tests.deploy.helm.chart import CHART, NAME, NAMESPACE, render
from tests.deploy.promql import counts, gateway_series, labels, rated, selectors

ON: dict[str, Any] = {
    "monitoring": {
        "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "rules": {"enabled": True, "labels": {"release": "prometheus"}},
        "dashboard": {"enabled": True},
    }
}


def rules() -> list[dict[str, Any]]:
    (group,) = render(ON).one("PrometheusRule")["spec"]["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def test_nothing_needs_an_operator_unless_it_is_asked_for():
    assert {manifest["apiVersion"].partition("/")[0] for manifest in render().manifests} <= {
        *("v1", "apps", "batch", "policy", "networking.k8s.io"),
    }


@pytest.mark.parametrize(
    ("values", "ports"),
    [({}, ["http", "triton-metrics"]), ({"device": "cpu", "models": {"variant": "fp32"}}, ["http"])],
)
def test_figures_are_asked_for_where_they_are_told(values: dict[str, Any], ports: list[str]):
    release = render({**ON, **values})
    endpoints = release.one("PodMonitor")["spec"]["podMetricsEndpoints"]
    assert [endpoint["port"] for endpoint in endpoints] == ports
    named = {port["name"] for container in release.containers.values() for port in container.get("ports", [])}
    assert set(ports) <= named
    labels = release.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert release.one("PodMonitor")["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_figures_are_asked_for_over_tls_where_the_gateway_speaks_it():
    gateway, triton = render({**ON, "tls": {"secretName": "c"}}).one("PodMonitor")["spec"]["podMetricsEndpoints"]
    assert gateway["scheme"] == "https"
    assert "scheme" not in triton


def test_what_selects_monitors_and_rules_finds_these():
    release = render(ON)
    for kind in ("PodMonitor", "PrometheusRule"):
        assert release.one(kind)["metadata"]["labels"]["release"] == "prometheus"


def test_alerts_are_about_series_that_exist_and_about_this_release():
    series = gateway_series()
    mine = {"namespace": NAMESPACE, "job": f"{NAMESPACE}/{NAME}"}
    assert rules()
    for rule in rules():
        asked = selectors(rule["expr"])
        assert asked
        for selector in asked:
            assert selector.name in series
            assert labels(selector).items() >= mine.items()
            assert labels(selector).keys() - mine.keys() <= series[selector.name]
            assert (selector.name in rated(rule["expr"])) == counts(selector.name)


def test_alerts_ask_for_reasons_that_there_are():
    reasons = {reason.value for reason in Reason} | set(REFUSALS)
    asked = [
        labels(selector)["reason"]
        for rule in rules()
        for selector in selectors(rule["expr"])
        if "reason" in labels(selector)
    ]
    assert asked
    assert {reason for each in asked for reason in each.split("|")} <= reasons


def test_an_alert_says_how_bad_it_is_and_what_it_means():
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names)
    for rule in rules():
        assert rule["for"].endswith("m")
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"].endswith(".")


def test_grafana_gets_the_dashboard_as_it_is():
    (text,) = render(ON).one("ConfigMap")["data"].values()
    assert text == (CHART / "dashboards" / "personaplex.json").read_text()
    assert render(ON).one("ConfigMap")["metadata"]["labels"]["grafana_dashboard"] == "1"
