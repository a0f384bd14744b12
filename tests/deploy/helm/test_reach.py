"""Service, routes, ingress and network policy."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from typing import Any

import jsonschema
import pytest
import uvicorn

from gateway.app import create_app
from gateway.cli.service import _bound
from gateway.engine.fake import FakeBackend
from gateway.manifest import Manifest
from gateway.settings import Settings
from tests.deploy.helm.chart import NAME, RELEASE, SHARED, Release, environment, render

ROUTE = {"enabled": True, "parentRefs": [{"name": "outside", "namespace": "gateways"}], "hostnames": ["c.example.com"]}
INGRESS = {"enabled": True, "hosts": ["c.example.com"], "grpc": {"enabled": True, "hosts": ["g.example.com"]}}
GRPC_SERVICES = {"personaplex.v1.PersonaPlex", "grpc.health.v1.Health"}
INTERNAL = {"/metrics", "/healthz", "/readyz"}
"""Paths for probes and Prometheus."""
FASTAPI_DEFAULTS = {"/redoc", "/docs/oauth2-redirect"}
"""Paths that FastAPI adds by default."""


def test_the_service_selects_the_serving_pods():
    release = render({"service": {"http": 80, "grpc": 50051}})
    service = release.one("Service")["spec"]
    labels = release.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()
    assert {port["name"]: (port["port"], port["targetPort"]) for port in service["ports"]} == {
        "http": (80, "http"),
        "grpc": (50051, "grpc"),
    }


@pytest.mark.parametrize(("tls", "protocols"), [("", ["http", "kubernetes.io/h2c"]), ("c", ["https", "https"])])
def test_the_service_declares_its_protocols(tls: str, protocols: list[str]):
    service = render({"tls": {"secretName": tls}}).one("Service")["spec"]
    assert [port["appProtocol"] for port in service["ports"]] == protocols


def paths_of_the_gateway(tiny_models: Any) -> set[str]:
    manifest = Manifest.load(tiny_models)
    app = create_app(Settings(models=tiny_models), backend=FakeBackend(manifest), manifest=manifest)
    return set(_paths(app.routes))


def _paths(routes: Iterable[Any]) -> Iterator[str]:
    for route in routes:
        if (included := getattr(route, "original_router", None)) is not None:
            yield from _paths(included.routes)
        else:
            yield route.path


def opened(release: Release, kind: str) -> list[tuple[str, bool]]:
    """Return the exposed paths, and whether each is a prefix."""
    if kind == "HTTPRoute":
        matches = [match["path"] for rule in release.one(kind)["spec"]["rules"] for match in rule["matches"]]
        return [(match["value"], match["type"] == "PathPrefix") for match in matches]
    ingress = next(each for each in release.of(kind) if each["metadata"]["name"] == NAME)
    paths = [path for rule in ingress["spec"]["rules"] for path in rule["http"]["paths"]]
    return [(path["path"], path["pathType"] == "Prefix") for path in paths]


@pytest.mark.parametrize("kind", ["HTTPRoute", "Ingress"])
def test_routes_expose_the_public_paths_only(tiny_models: Any, kind: str):
    ways = opened(render({"route": ROUTE, "ingress": INGRESS}), kind)
    paths = paths_of_the_gateway(tiny_models)
    assert paths >= INTERNAL
    reached = {
        path
        for path in paths
        for way, below in ways
        if path == way or (below and path.startswith(f"{way.rstrip('/')}/"))
    }
    assert reached == paths - INTERNAL - FASTAPI_DEFAULTS


def test_grpc_routes_use_the_grpc_port():
    release = render({"route": ROUTE, "ingress": INGRESS, "service": {"grpc": 50051}})
    (rule,) = release.one("GRPCRoute")["spec"]["rules"]
    assert {match["method"]["service"] for match in rule["matches"]} == GRPC_SERVICES
    assert rule["backendRefs"] == [{"name": NAME, "port": 50051}]
    (ingress,) = [each for each in release.of("Ingress") if each["metadata"]["name"] != NAME]
    (host,) = ingress["spec"]["rules"]
    assert {path["path"] for path in host["http"]["paths"]} == {f"/{service}" for service in GRPC_SERVICES}
    assert {path["backend"]["service"]["port"]["name"] for path in host["http"]["paths"]} == {"grpc"}


def test_a_route_has_no_timeouts():
    (rule,) = render({"route": ROUTE}).one("HTTPRoute")["spec"]["rules"]
    assert rule["timeouts"] == {"request": "0s", "backendRequest": "0s"}


def test_the_gateway_checks_the_certificate_of_the_pods():
    assert render({"route": ROUTE}).of("BackendTLSPolicy") == []
    policy = render({"route": ROUTE, "tls": {"secretName": "c"}}).one("BackendTLSPolicy")["spec"]
    (target,) = policy["targetRefs"]
    assert (target["kind"], target["name"]) == ("Service", NAME)
    assert policy["validation"] == {"hostname": ROUTE["hostnames"][0], "wellKnownCACertificates": "System"}
    own = {**ROUTE, "backendTLS": {"hostname": "pods.internal", "caConfigMap": "ca"}}
    validation = render({"route": own, "tls": {"secretName": "c"}}).one("BackendTLSPolicy")["spec"]["validation"]
    assert validation["hostname"] == "pods.internal"
    assert validation["caCertificateRefs"] == [{"group": "", "kind": "ConfigMap", "name": "ca"}]


def test_services_have_the_families_of_the_values_and_pods_listen_on_both():
    for service in render().of("Service"):
        assert not {"ipFamilyPolicy", "ipFamilies"} & service["spec"].keys()
    families = ["IPv6", "IPv4"]
    release = render({"service": {"ipFamilyPolicy": "PreferDualStack", "ipFamilies": families}})
    for service in release.of("Service"):
        assert (service["spec"]["ipFamilyPolicy"], service["spec"]["ipFamilies"]) == ("PreferDualStack", families)
    listener = _bound(environment(release.containers["gateway"])["PERSONAPLEX_HOST"], 0, "--port")
    listener.listen()
    for local in ("127.0.0.1", "::1"):
        socket.create_connection((local, listener.getsockname()[1]), timeout=5).close()
    listener.close()


TRAFFIC = {
    "type": "object",
    "additionalProperties": False,
    "required": ["targetRefs", "loadBalancer", "circuitBreaker", "retry", "timeout"],
    "properties": {
        "targetRefs": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["group", "kind", "name"],
                "properties": {name: {"type": "string"} for name in ("group", "kind", "name", "sectionName")},
            },
        },
        "loadBalancer": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"type": {"enum": ["ConsistentHash", "LeastRequest", "Random", "RoundRobin"]}},
        },
        "circuitBreaker": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                name: {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}
                for name in ("maxConnections", "maxPendingRequests", "maxParallelRequests", "maxParallelRetries")
            },
        },
        "retry": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "numRetries": {"type": "integer", "minimum": 0},
                "retryOn": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "triggers": {
                            "type": "array",
                            "items": {
                                "enum": [
                                    *("5xx", "gateway-error", "reset", "connect-failure", "retriable-4xx"),
                                    *("refused-stream", "retriable-status-codes", "cancelled", "deadline-exceeded"),
                                    *("internal", "resource-exhausted", "unavailable"),
                                ]
                            },
                        },
                        "httpStatusCodes": {
                            "type": "array",
                            "items": {"type": "integer", "minimum": 100, "exclusiveMaximum": 600},
                        },
                    },
                },
                "perRetry": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "backOff": {
                            "type": "object",
                            "additionalProperties": False,
                            "properties": {
                                name: {"type": "string", "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$"}
                                for name in ("baseInterval", "maxInterval")
                            },
                        },
                    },
                },
            },
        },
        "requestBuffer": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"limit": {"type": "integer"}, "mode": {"enum": ["BufferAndLimit", "LimitOnly"]}},
        },
        "timeout": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "tcp": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"connectTimeout": {"type": "string", "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$"}},
                },
                "http": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        name: {"type": "string", "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$"}
                        for name in ("connectionIdleTimeout", "maxConnectionDuration", "requestTimeout")
                    },
                },
            },
        },
    },
}
"""The part of the spec of gateway.envoyproxy.io/v1alpha1 BackendTrafficPolicy that the chart uses, from the API's types
in envoyproxy/gateway: api/v1alpha1/retry_types.go, loadbalancer_types.go, timeout_types.go, circuitbreaker_types.go,
backendtrafficpolicy_types.go."""


def test_envoy_repeats_a_refused_call_on_other_pods():
    """`tests/fleet` runs Envoy with these policies."""
    assert render({"route": ROUTE}).of("BackendTrafficPolicy") == []
    envoy = {"route": {**ROUTE, "envoy": {"enabled": True}}}
    release = render({**SHARED, **envoy, "replicas": 10})
    routes = {
        (route["kind"], route["metadata"]["name"]) for kind in ("HTTPRoute", "GRPCRoute") for route in release.of(kind)
    }
    policies = [each["spec"] for each in release.of("BackendTrafficPolicy")]
    targets = [(target["kind"], target["name"]) for spec in policies for target in spec["targetRefs"]]
    assert sorted(targets) == sorted(routes)
    for spec in policies:
        jsonschema.validate(spec, TRAFFIC)
        # Envoy's own default for calls and retries at once is 1024; a thousand pods have more slots.
        assert min(spec["circuitBreaker"].values()) > 1000 * 64
        assert spec["retry"]["numRetries"] == 30
        # A request that meets the close of an idle connection is lost.
        idle = spec["timeout"]["http"]["connectionIdleTimeout"]
        assert float(idle.removesuffix("s")) < uvicorn.Config("").timeout_keep_alive
    assert "admin drain" in str(release.containers["gateway"]["lifecycle"]["preStop"])
    own = {"route": {**ROUTE, "envoy": {"enabled": True, "retries": 7}}}
    assert render(own).one("BackendTrafficPolicy")["spec"]["retry"]["numRetries"] == 7


def test_envoy_keeps_recordings_and_nothing_else_until_a_pod_answers():
    """Buffering a live call would stop it with an Envoy Gateway that does not know the mode."""
    envoy = {"route": {**ROUTE, "envoy": {"enabled": True}}}
    for settings, limit in (({}, 64 * 2**20), ({"max_body_bytes": 1e7}, 10_000_000)):
        release = render({**envoy, "settings": settings})
        buffered = [each for each in release.of("BackendTrafficPolicy") if "requestBuffer" in each["spec"]]
        (spec,) = (each["spec"] for each in buffered)
        assert spec["requestBuffer"] == {"limit": limit, "mode": "LimitOnly"}
        names = {target["name"] for target in spec["targetRefs"]}
        http, rpc = (
            next(each["spec"] for each in release.of(kind) if {each["metadata"]["name"]} == names)
            for kind in ("HTTPRoute", "GRPCRoute")
        )
        assert [match["path"] for match in http["rules"][0]["matches"]] == [{"type": "Exact", "value": "/v1/respond"}]
        assert [match["method"]["method"] for match in rpc["rules"][0]["matches"]] == ["Respond", "RespondStream"]


def policy(**values: Any) -> dict[str, Any]:
    spec: dict[str, Any] = render(values).one("NetworkPolicy")["spec"]
    return spec


def ports(rule: dict[str, Any]) -> list[int]:
    return [each["port"] for each in rule["ports"]]


def test_the_network_policy_allows_the_api_ports_only():
    spec = policy()
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    assert spec["egress"] == []
    clients, metrics = spec["ingress"]
    assert ports(clients) == [8998, 8999]
    assert "from" not in clients
    assert ports(metrics) == [8002]
    assert metrics["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]


def test_restricted_clients_include_helm_test_and_prometheus():
    agents = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "agents"}}}
    clients, metrics = policy(networkPolicy={"clients": [agents]})["ingress"]
    tester = {
        "podSelector": {
            "matchLabels": {
                "app.kubernetes.io/name": "personaplex",
                "app.kubernetes.io/instance": RELEASE,
                "app.kubernetes.io/component": "test",
            }
        }
    }
    assert clients["from"] == [agents, tester, *metrics["from"]]
    assert tester["podSelector"]["matchLabels"].items() <= render().one("Pod")["metadata"]["labels"].items()


def test_without_monitoring_peers_triton_is_unreachable():
    (clients,) = policy(networkPolicy={"monitoring": []})["ingress"]
    assert ports(clients) == [8998, 8999]


def test_policy_and_disruption_budget_select_the_serving_pods():
    release = render()
    labels = release.one("Deployment")["spec"]["template"]["metadata"]["labels"].items()
    assert release.one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"].items() <= labels
    assert release.one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"].items() <= labels
