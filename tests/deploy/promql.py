"""Series, labels and functions of PromQL queries, and the series that the gateway exports."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import promql_parser
from prometheus_client.parser import text_string_to_metric_families

from gateway.session.events import Reason
from gateway.telemetry.metrics import Api, Metrics

_CHILDREN = ("lhs", "rhs", "expr", "param", "vector_selector", "args")


def gateway_series() -> dict[str, set[str]]:
    """Return the labels of every series in the gateway's /metrics, by name."""
    found: dict[str, set[str]] = {}
    metrics = Metrics(1)
    metrics.ended.labels(Api.REST, Reason.ERROR)  # as Runtime does at its start
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def parsed(query: str) -> Any:
    return promql_parser.parse(query.replace("$__rate_interval", "1m"))


def nodes(node: Any) -> Iterator[Any]:
    yield node
    for name in _CHILDREN:
        child = getattr(node, name, None)
        for each in child if isinstance(child, list) else [child]:
            if each is not None:
                yield from nodes(each)


def selectors(query: str) -> list[Any]:
    return _selectors_below(parsed(query))


def labels(selector: Any) -> dict[str, str]:
    """Return the matched labels of a selector, by name."""
    return {matcher.name: matcher.value for matcher in selector.matchers.matchers}


def rated(query: str) -> set[str]:
    """Return the names of the series inside `rate`."""
    return {
        selector.name
        for node in nodes(parsed(query))
        if isinstance(node, promql_parser.Call) and node.func.name == "rate"
        for selector in _selectors_below(node)
    }


def counts(name: str) -> bool:
    """Return whether a series is a counter."""
    return name.endswith(("_total", "_bucket", "_sum", "_count"))


def family(name: str) -> str:
    return re.sub(r"_(bucket|sum|count|total)$", "", name)


def _selectors_below(node: Any) -> list[Any]:
    return [each for each in nodes(node) if isinstance(each, promql_parser.VectorSelector)]
