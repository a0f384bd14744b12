"""The dashboard: every query is PromQL over series that the gateway really has, and every series is on it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.metrics import Metrics

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "personaplex.json"
# Added by Prometheus when it scrapes.
TARGET_LABELS = {"job", "instance"}
CHILDREN = ("lhs", "rhs", "expr", "param", "vector_selector", "args")


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    return json.loads(DASHBOARD.read_text())


@pytest.fixture(scope="module")
def series() -> dict[str, set[str]]:
    """Labels by the name of every series on the page."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(Metrics(1).text().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def queries(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def parsed(query: str) -> Any:
    filled = query.replace("$__rate_interval", "1m")
    return promql_parser.parse(filled)


def nodes(node: Any) -> Iterator[Any]:
    yield node
    for name in CHILDREN:
        child = getattr(node, name, None)
        for each in child if isinstance(child, list) else [child]:
            if each is not None:
                yield from nodes(each)


def selectors_below(node: Any) -> list[Any]:
    return [each for each in nodes(node) if isinstance(each, promql_parser.VectorSelector)]


def selectors(query: str) -> list[Any]:
    return selectors_below(parsed(query))


def test_every_query_is_about_series_and_labels_that_exist(dashboard: dict[str, Any], series: dict[str, set[str]]):
    for query in queries(dashboard):
        asked = selectors(query)
        assert asked, query
        for selector in asked:
            assert selector.name in series, query
            labels = {matcher.name for matcher in selector.matchers.matchers}
            assert labels <= series[selector.name] | TARGET_LABELS, query
            assert labels >= TARGET_LABELS, f"not limited to the chosen job and instance: {query}"


def test_sums_and_legends_name_labels_that_exist(dashboard: dict[str, Any], series: dict[str, set[str]]):
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            there = set.intersection(*(series[selector.name] for selector in selectors(target["expr"])))
            kept: set[str] = set()
            for node in nodes(parsed(target["expr"])):
                if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
                    kept |= set(node.modifier.labels)
            assert kept <= there
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= kept


def test_counters_are_asked_for_their_rate_and_gauges_are_not(dashboard: dict[str, Any]):
    for query in queries(dashboard):
        rated = {
            selector.name
            for node in nodes(parsed(query))
            if isinstance(node, promql_parser.Call) and node.func.name == "rate"
            for selector in selectors_below(node)
        }
        for selector in selectors(query):
            counts = selector.name.endswith(("_total", "_bucket", "_sum", "_count"))
            assert (selector.name in rated) == counts, query


def test_everything_that_is_measured_is_shown(dashboard: dict[str, Any], series: dict[str, set[str]]):
    shown = {selector.name for query in queries(dashboard) for selector in selectors(query)}
    shown_families = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in shown}
    families = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in series}
    assert families == shown_families


def test_variables_are_declared_and_ask_for_series_that_exist(dashboard: dict[str, Any], series: dict[str, set[str]]):
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
