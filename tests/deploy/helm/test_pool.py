"""HAProxy in front of the pods. `tests/fleet` runs it with this configuration."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.helm.chart import NAME, SHARED, Release, render
from tests.deploy.helm.test_runs import until

needs_haproxy = pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed: .ci/haproxy")
POOL: dict[str, Any] = {**SHARED, "pool": {"enabled": True}}


def config(release: Release) -> str:
    (found,) = [each for each in release.of("ConfigMap") if each["metadata"]["name"] == f"{NAME}-pool"]
    text: str = found["data"]["haproxy.cfg"]
    return text


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def service(release: Release, name: str) -> dict[str, Any]:
    (found,) = [each for each in release.of("Service") if each["metadata"]["name"] == name]
    spec: dict[str, Any] = found["spec"]
    return spec


def deployment(release: Release, name: str) -> dict[str, Any]:
    (found,) = [each for each in release.of("Deployment") if each["metadata"]["name"] == name]
    spec: dict[str, Any] = found["spec"]
    return spec


def issue(folder: Path, name: str) -> None:
    """Write a certificate and its key as a Secret has them, into a folder."""
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-subj", f"/CN={name}", "-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt")),
        ],
        check=True,
        capture_output=True,
    )


@needs_haproxy
def test_haproxy_serves_a_new_certificate_and_goes_on(tmp_path: Path):
    release = render({**POOL, "tls": {"secretName": "certificate"}})
    (container,) = deployment(release, f"{NAME}-pool")["template"]["spec"]["containers"]
    issue(tmp_path, "old")
    text = config(release).replace("/tls/", f"{tmp_path}/")
    for standard, port in (ports := {each: free_port() for each in (8998, 8999, 8404)}).items():
        text = text.replace(f"bind :{standard}", f"bind 127.0.0.1:{port}")
    (tmp_path / "haproxy.cfg").write_text(text)
    *shell, script = container["command"]
    script = script.replace("/tls/", f"{tmp_path}/").replace("/pool/", f"{tmp_path}/").replace("sleep 30", "sleep 0.1")
    with subprocess.Popen([*shell, script], cwd=tmp_path, start_new_session=True) as process:
        try:
            until(lambda: presented(ports[8998]) == "old", 20)
            issue(tmp_path, "new")
            until(lambda: presented(ports[8998]) == "new", 20)
            process.send_signal(signal.SIGUSR1)
            assert process.wait(20) == 0
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def presented(port: int) -> str | None:
    """The name in the certificate that a port presents, or None if nothing listens there."""
    try:
        pem = ssl.get_server_certificate(("127.0.0.1", port), timeout=5)
    except OSError:
        return None
    done = subprocess.run(["openssl", "x509", "-noout", "-subject"], input=pem, capture_output=True, text=True)
    return done.stdout.strip().rpartition(" ")[2]


@needs_haproxy
@pytest.mark.parametrize(
    "values",
    [
        {},
        {"replicas": 10},
        {"autoscaling": {"enabled": True, "kind": "hpa", "max": 32}},
        {"tls": {"secretName": "certificate"}},
        {"settings": {"max_call_seconds": 600.5}},
        {"service": {"ipFamilies": ["IPv6", "IPv4"]}},
    ],
)
def test_haproxy_accepts_its_configuration(tmp_path: Path, values: dict[str, Any]):
    issue(tmp_path, "x")
    path = tmp_path / "haproxy.cfg"
    path.write_text(config(render({**values, **POOL})).replace("/tls/", f"{tmp_path}/"))
    checked = subprocess.run(["haproxy", "-c", "-f", str(path)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert "WARNING" not in checked.stderr


def test_attempts_reach_every_pod_and_addresses_have_room_for_a_rollout():
    for values, pods in (({"replicas": 5}, 5), ({"autoscaling": {"enabled": True, "kind": "hpa", "max": 12}}, 12)):
        text = config(render({**values, **POOL}))
        assert f"    retries {3 * pods}\n" in text
        assert f"server-template pod {2 * pods} {NAME}-pods.voice.svc.cluster.local:8998" in text


def test_timeouts_exceed_the_longest_call():
    for settings, seconds in (({}, 3660), ({"max_call_seconds": 7200.5}, 7261)):
        text = config(render({"settings": settings, **POOL}))
        for name in ("client", "server", "tunnel"):
            assert f"timeout {name} {seconds}s" in text


def test_clients_reach_haproxy_and_haproxy_reaches_the_pods():
    release = render(POOL)
    balancers = deployment(release, f"{NAME}-pool")["template"]["metadata"]["labels"].items()
    servers = deployment(release, NAME)["template"]["metadata"]["labels"].items()
    assert service(release, NAME)["selector"].items() <= balancers
    assert not service(release, NAME)["selector"].items() <= servers
    pods = service(release, f"{NAME}-pods")
    assert pods["clusterIP"] == "None"
    assert pods["selector"].items() <= servers
    assert not pods["selector"].items() <= balancers
    # Draining pods leave.
    assert "publishNotReadyAddresses" not in pods


def test_without_the_pool_clients_reach_the_pods():
    release = render()
    assert [each["metadata"]["name"] for each in release.of("Deployment")] == [NAME]
    labels = deployment(release, NAME)["template"]["metadata"]["labels"].items()
    assert service(release, NAME)["selector"].items() <= labels


def test_a_restricted_policy_admits_haproxy():
    agents = {"podSelector": {"matchLabels": {"app": "agents"}}}
    release = render({**POOL, "networkPolicy": {"clients": [agents]}})
    peers = release.one("NetworkPolicy")["spec"]["ingress"][0]["from"]
    labels = deployment(release, f"{NAME}-pool")["template"]["metadata"]["labels"].items()
    assert any(peer.get("podSelector", {"matchLabels": {"": ""}})["matchLabels"].items() <= labels for peer in peers)


def test_calls_outlast_a_rollout_of_haproxy():
    spec = deployment(render({**POOL, "drainSeconds": 1800}), f"{NAME}-pool")["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] == 1920
    assert "hard-stop-after 1860s" in config(render({**POOL, "drainSeconds": 1800}))


def test_a_new_configuration_replaces_the_pods_of_haproxy():
    def annotations(**values: Any) -> dict[str, str]:
        template = deployment(render({**POOL, **values}), f"{NAME}-pool")["template"]
        found: dict[str, str] = template["metadata"]["annotations"]
        return found

    assert annotations() == annotations(slots=8)
    assert annotations() != annotations(replicas=3)


def test_pods_refuse_before_the_upgrade():
    variables = {each["name"]: each.get("value") for each in render(POOL).containers["gateway"]["env"]}
    assert variables["PERSONAPLEX_ACCEPT_WHEN_FULL"] == "false"


def test_prometheus_scrapes_haproxy():
    release = render({**POOL, "monitoring": {"podMonitor": {"enabled": True}}})
    (monitor,) = [each for each in release.of("PodMonitor") if each["metadata"]["name"] == f"{NAME}-pool"]
    template = deployment(release, f"{NAME}-pool")["template"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    (port,) = [endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]]
    ports = {each["name"]: each["containerPort"] for each in template["spec"]["containers"][0]["ports"]}
    assert f"bind :{ports[port]}\n" in config(release)
