"""The dashboard: its queries are PromQL over existing series, and it shows every series."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

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


def queries(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def test_queries_use_existing_series_and_labels(dashboard: dict[str, Any], series: dict[str, set[str]]):
    for query in queries(dashboard):
        asked = selectors(query)
        assert asked, query
        for selector in asked:
            assert selector.name in series, query
            assert labels(selector).keys() <= series[selector.name] | TARGET_LABELS, query
            assert labels(selector).keys() >= TARGET_LABELS, f"not limited to the chosen job and instance: {query}"


def test_aggregations_and_legends_use_existing_labels(dashboard: dict[str, Any], series: dict[str, set[str]]):
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            there = set.intersection(*(series[selector.name] for selector in selectors(target["expr"])))
            kept: set[str] = set()
            for node in nodes(parsed(target["expr"])):
                if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
                    kept |= set(node.modifier.labels)
            assert kept <= there
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept


def test_counters_and_no_gauges_are_in_rates(dashboard: dict[str, Any]):
    for query in queries(dashboard):
        for selector in selectors(query):
            assert (selector.name in rated(query)) == counts(selector.name), query


def test_every_series_is_on_a_panel(dashboard: dict[str, Any], series: dict[str, set[str]]):
    shown = {family(selector.name) for query in queries(dashboard) for selector in selectors(query)}
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
        assert panel["fieldConfig"]["defaults"]["unit"]
        grid = panel["gridPos"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
