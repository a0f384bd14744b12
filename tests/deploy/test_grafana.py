"""The dashboard: its queries are PromQL over existing series, and it shows every series."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import httpx
import promql_parser
import pytest

from tests.deploy.promql import counts, family, gateway_series, labels, nodes, parsed, rated, selectors

DASHBOARD = Path(__file__).parents[2] / "deploy" / "helm" / "personaplex" / "dashboards" / "personaplex.json"
# Added by Prometheus when it scrapes.
TARGET_LABELS = {"job", "instance"}


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return json.loads(DASHBOARD.read_text())


@pytest.fixture(scope="module")
def series() -> dict[str, set[str]]:
    return gateway_series()


def graphs(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def queries(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in graphs(dashboard) for target in panel["targets"]]


def own(dashboard: dict[str, Any]) -> list[str]:
    """Queries of the gateway's series."""
    return [query for query in queries(dashboard) if "personaplex_" in query]


def others(dashboard: dict[str, Any]) -> dict[str, str]:
    """Series of other exporters, each with one of its queries."""
    found = [query for query in queries(dashboard) if query not in own(dashboard)]
    return {selector.name: query for query in found for selector in selectors(query)}


def test_queries_of_other_exporters_are_limited_to_the_chosen_job(dashboard: dict[str, Any]):
    for name, query in others(dashboard).items():
        for selector in selectors(query):
            matched = labels(selector)
            if name.startswith("DCGM_"):
                assert matched in ({"container": "models"}, {"exported_container": "models"}), query
            else:
                assert matched == {"job": "$job" if name.startswith("nv_") else "($job)-pool"}, query
            assert (selector.name in rated(query)) == bool(re.search("(_total|_us|_success|_failure)$", selector.name))


@pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed: .ci/haproxy")
def test_haproxy_exports_the_series_of_its_row(dashboard: dict[str, Any], tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "haproxy.cfg").write_text(
        "defaults\n mode http\n timeout connect 1s\n timeout client 1s\n timeout server 1s\n"
        f"frontend metrics\n bind 127.0.0.1:{port}\n http-request use-service prometheus-exporter\n"
        "backend http\n server pod 127.0.0.1:1\n"
    )
    with subprocess.Popen(["haproxy", "-db", "-f", tmp_path / "haproxy.cfg"]) as haproxy:
        transport = httpx.HTTPTransport(retries=20)
        with httpx.Client(transport=transport, trust_env=False) as client:
            page = client.get(f"http://127.0.0.1:{port}/metrics").text
        haproxy.terminate()
    exported = re.findall(r"^(haproxy_\w+)\{(.*)\}", page, re.MULTILINE)
    for name, query in others(dashboard).items():
        if name.startswith("haproxy_"):
            found = {label for series, text in exported if series == name for label in re.findall(r"(\w+)=", text)}
            assert found >= grouped(query), query


def grouped(query: str) -> set[str]:
    """Labels by which a query groups."""
    return {
        label
        for node in nodes(parsed(query))
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None
        for label in node.modifier.labels
    }


def test_queries_use_existing_series_and_labels(dashboard: dict[str, Any], series: dict[str, set[str]]):
    for query in own(dashboard):
        asked = selectors(query)
        assert asked, query
        for selector in asked:
            assert selector.name in series, query
            assert labels(selector).keys() <= series[selector.name] | TARGET_LABELS, query
            assert labels(selector).keys() >= TARGET_LABELS, f"not limited to the chosen job and instance: {query}"


def test_aggregations_and_legends_use_existing_labels(dashboard: dict[str, Any], series: dict[str, set[str]]):
    for panel in graphs(dashboard):
        for target in panel["targets"]:
            kept = grouped(target["expr"])
            if target["expr"] in own(dashboard):
                assert kept <= set.intersection(*(series[selector.name] for selector in selectors(target["expr"])))
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept


def test_counters_and_no_gauges_are_in_rates(dashboard: dict[str, Any]):
    for query in own(dashboard):
        for selector in selectors(query):
            assert (selector.name in rated(query)) == counts(selector.name), query


def test_every_series_is_on_a_panel(dashboard: dict[str, Any], series: dict[str, set[str]]):
    shown = {family(selector.name) for query in own(dashboard) for selector in selectors(query)}
    assert shown == {family(name) for name in series}


def test_variables_are_declared_and_query_existing_series(dashboard: dict[str, Any], series: dict[str, set[str]]):
    declared = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard["panels"]))) - {"__rate_interval"}
    assert used == set(declared)
    for variable in declared.values():
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((\w+)(\{.*\})?, (\w+)\)", variable["query"]["query"])
            assert found
            assert found[1] in series
            assert found[3] in TARGET_LABELS


def test_panels_have_titles_and_units_and_do_not_overlap(dashboard: dict[str, Any]):
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        assert panel["title"]
        assert panel["type"] == "row" or panel["fieldConfig"]["defaults"]["unit"]
        grid = panel["gridPos"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
