"""The serving pod: containers, probes, termination and security context."""

from __future__ import annotations

import re
from typing import Any

import pytest
import typer
import yaml

from gateway.cli import app
from gateway.settings import Settings
from tests.deploy.helm.chart import CHART, SHARED, Release, environment, render

DEPLOY = CHART.parents[1]
CPU = {"device": "cpu", "models": {"variant": "fp32"}}


def seconds(probe: dict[str, Any]) -> int:
    """Return the seconds for which a probe may fail."""
    return probe["periodSeconds"] * probe["failureThreshold"]


def serve_options(release: Release) -> dict[str, Any]:
    """Parse the gateway's arguments with the command line. Fails for unknown options."""
    first, *rest = release.containers["gateway"]["args"]
    assert first == "serve"
    command = typer.main.get_command(app).commands["serve"]
    params: dict[str, Any] = command.make_context("serve", list(rest)).params
    return params


def test_triton_is_a_sidecar():
    """A sidecar is an init container with restartPolicy Always."""
    pod = render().pod
    assert [each["name"] for each in pod["initContainers"]] == ["wait", "models"]
    assert [each["name"] for each in pod["containers"]] == ["gateway"]
    assert pod["initContainers"][1]["restartPolicy"] == "Always"
    assert "restartPolicy" not in pod["initContainers"][0]
    assert "ready" in pod["initContainers"][1]["startupProbe"]["exec"]["command"][-1]


def test_triton_has_the_health_check_of_its_image():
    probes = render().containers["models"]
    (command,) = re.findall(r'CMD \["python3", "-c", "(.*)"\]', (DEPLOY / "models.Dockerfile").read_text())
    assert probes["startupProbe"]["exec"]["command"] == ["python3", "-c", command]
    assert probes["livenessProbe"]["exec"]["command"] == ["python3", "-c", command.replace("/ready", "/live")]


def test_the_gateway_uses_the_pods_triton_over_loopback():
    release = render()
    options = serve_options(release)
    assert options["triton"] == "127.0.0.1:8000"
    assert "--http-port=8000" in (DEPLOY / "serve-models.sh").read_text()
    arguments = release.containers["models"]["args"]
    assert {"--http-address=127.0.0.1", "--grpc-address=127.0.0.1"} <= set(arguments)


def test_on_a_cpu_the_gateway_runs_triton():
    release = render({**CPU, "triton": {"startupSeconds": 77, "extraEnv": [{"name": "X", "value": "1"}]}})
    assert list(release.containers) == ["wait", "gateway"]
    assert serve_options(release)["triton"] is None
    assert serve_options(release)["wait"] == 77
    gateway = release.containers["gateway"]
    assert {"name": "X", "value": "1"} in gateway["env"]
    # The number of threads follows the CPU limit.
    assert gateway["resources"]["limits"] == {"memory": "24Gi", "cpu": "2"}
    larger = {"requests": {"cpu": "8"}, "limits": {"cpu": "12"}}
    limits = render({**CPU, "triton": {"resources": larger}}).containers["gateway"]["resources"]["limits"]
    assert limits == {"memory": "24Gi", "cpu": "12"}
    assert "cpu" not in render().containers["models"]["resources"]["limits"]
    assert "/dev/shm" in {mount["mountPath"] for mount in gateway["volumeMounts"]}


def test_triton_has_the_gpu_and_the_gateway_has_none():
    release = render({"triton": {"gpu": {"resource": "nvidia.com/mig-3g.40gb", "count": 2}}})
    assert release.containers["models"]["resources"]["limits"]["nvidia.com/mig-3g.40gb"] == 2
    assert release.containers["models"]["resources"]["limits"]["memory"] == "24Gi"
    assert "nvidia" not in str(release.containers["gateway"])
    assert render().containers["models"]["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_startup_probes_allow_for_loading_the_weights():
    release = render({"triton": {"startupSeconds": 1200}})
    assert {seconds(release.containers[name]["startupProbe"]) for name in ("models", "gateway")} == {1200}


@pytest.mark.parametrize("values", [{}, {"drainSeconds": 0, "preStopSeconds": 0}, {"drainSeconds": 7200}])
def test_the_grace_period_exceeds_the_drain_time(values: dict[str, Any]):
    """After the preStop hook and the drain there is time to end the sequences and Triton."""
    release = render(values)
    (sleep, seconds_before) = release.containers["gateway"]["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep == "sleep"
    (triton,) = map(int, re.findall(r"--exit-timeout-secs=(\d+)", (DEPLOY / "serve-models.sh").read_text()))
    after = Settings().release_deadline + triton
    drain = serve_options(release)["drain"]
    assert drain == values.get("drainSeconds", Settings().max_call_seconds)
    assert int(seconds_before) + drain + after < release.pod["terminationGracePeriodSeconds"]


def test_helm_test_makes_a_call_if_it_can_have_a_key_and_a_certificate():
    for values, number in (
        ({}, 1),
        ({"apiKeys": {"secretName": "keys"}}, 1),
        ({"apiKeys": {"secretName": "keys", "file": "keys.json"}}, 0),
        ({"tls": {"secretName": "certificate"}}, 0),
    ):
        release = render(values)
        assert len(release.of("Pod")) == ("helm test" in release.notes) == number


def test_probes_use_the_health_endpoints_of_the_gateway(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PERSONAPLEX_GRPC_PORT", raising=False)
    gateway = render().containers["gateway"]
    paths = {name: gateway[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths == {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
    assert {port["name"]: port["containerPort"] for port in gateway["ports"]} == {
        "http": Settings().port,
        "grpc": Settings().grpc_listen_port,
    }


def test_with_a_certificate_the_gateway_and_its_probes_use_tls():
    release = render({"tls": {"secretName": "certificate"}})
    gateway = release.containers["gateway"]
    schemes = {gateway[name]["httpGet"]["scheme"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert schemes == {"HTTPS"}
    (mount,) = [each for each in gateway["volumeMounts"] if each["name"] == "tls"]
    (volume,) = [each for each in release.pod["volumes"] if each["name"] == "tls"]
    variables = environment(gateway)
    assert variables["PERSONAPLEX_TLS_CERTIFICATE"] == f"{mount['mountPath']}/tls.crt"
    assert variables["PERSONAPLEX_TLS_KEY"] == f"{mount['mountPath']}/tls.key"
    assert volume["secret"]["secretName"] == "certificate"
    assert volume["secret"]["defaultMode"] == 0o440


def test_api_keys_come_from_a_secret_only():
    release = render({"apiKeys": {"secretName": "keys", "key": "list"}})
    (variable,) = [each for each in release.containers["gateway"]["env"] if each["name"] == "PERSONAPLEX_API_KEYS"]
    assert variable["valueFrom"] == {"secretKeyRef": {"name": "keys", "key": "list"}}
    assert "PERSONAPLEX_API_KEYS" not in str(render().pod)


def test_a_file_of_api_keys_is_mounted_and_changes_with_the_secret():
    release = render({"apiKeys": {"secretName": "keys", "file": "keys.json"}})
    gateway = release.containers["gateway"]
    assert environment(gateway)["PERSONAPLEX_API_KEYS_FILE"] == "/keys/keys.json"
    assert "PERSONAPLEX_API_KEYS" not in {each["name"] for each in gateway["env"]}
    (mount,) = [each for each in gateway["volumeMounts"] if each["name"] == "keys"]
    # Kubernetes does not update a volume with a subPath.
    assert (mount["mountPath"], mount.keys() & {"subPath"}) == ("/keys", set())
    (volume,) = [each for each in release.pod["volumes"] if each["name"] == "keys"]
    assert volume["secret"] == {"secretName": "keys", "defaultMode": 0o440}


def test_calls_are_logged_as_json():
    assert (
        environment(render().containers["gateway"]).items()
        >= {
            "PERSONAPLEX_LOG_FORMAT": "json",
            "PERSONAPLEX_LOG_LEVEL": "info",
        }.items()
    )


def test_containers_meet_the_restricted_pod_security_standard():
    """Containers also have a read-only root filesystem."""
    for release in (render(), render(CPU)):
        job = release.one("Job")["spec"]["template"]["spec"]
        test = release.one("Pod")["spec"]
        for pod in (release.pod, job, test):
            assert pod["automountServiceAccountToken"] is False
            assert pod["enableServiceLinks"] is False
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
            kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
            assert kinds <= {"persistentVolumeClaim", "emptyDir", "secret", "projected"}
            for container in [*pod.get("initContainers", []), *pod["containers"]]:
                security = container["securityContext"]
                assert security["allowPrivilegeEscalation"] is False
                assert security["readOnlyRootFilesystem"] is True
                assert security["capabilities"] == {"drop": ["ALL"]}
                assert security.get("runAsUser", pod["securityContext"]["runAsUser"]) > 0
                assert container["resources"]["limits"]["memory"]
    assert release.one("ServiceAccount")["automountServiceAccountToken"] is False


def test_containers_run_as_the_user_of_their_image():
    files = [file.read_text() for file in DEPLOY.glob("*.Dockerfile")]
    users = {user for text in files for user in re.findall(r"^USER (.+)$", text, re.M)}
    pod = render().pod
    assert users == {str(pod["securityContext"]["runAsUser"])}
    assert not any("runAsUser" in each["securityContext"] for each in [*pod["initContainers"], *pod["containers"]])


def test_triton_has_shared_memory():
    release = render({"triton": {"sharedMemory": "2Gi"}})
    (volume,) = [each for each in release.pod["volumes"] if each["name"] == "shared-memory"]
    assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": "2Gi"}
    mounts = {mount["name"]: mount["mountPath"] for mount in release.containers["models"]["volumeMounts"]}
    assert mounts["shared-memory"] == "/dev/shm"


def test_node_autoscalers_do_not_end_pods_with_calls():
    def annotations(**values: Any) -> dict[str, str]:
        found: dict[str, str] = render(values).one("Deployment")["spec"]["template"]["metadata"]["annotations"]
        return found

    evict, disrupt = "cluster-autoscaler.kubernetes.io/safe-to-evict", "karpenter.sh/do-not-disrupt"
    assert (annotations()[evict], annotations()[disrupt]) == ("false", "true")
    assert not {evict, disrupt} & annotations(safeToEvict=True).keys()
    assert annotations(podAnnotations={evict: "true"})[evict] == "true"


def test_pods_are_spread_over_zones_and_nodes():
    release = render({**SHARED, "pool": {"enabled": True}})
    for deployment in release.of("Deployment"):
        template = deployment["spec"]["template"]
        spread = template["spec"]["topologySpreadConstraints"]
        assert [each["topologyKey"] for each in spread] == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
        for each in spread:
            assert each["whenUnsatisfiable"] == "ScheduleAnyway"
            assert each["labelSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    own = [{"maxSkew": 2, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}]
    assert render({"topologySpreadConstraints": own}).pod["topologySpreadConstraints"] == own


def test_further_volumes_are_mounted_where_they_are_wanted():
    volume = {"name": "certificates", "configMap": {"name": "ca"}}
    mount = {"name": "certificates", "mountPath": "/etc/ssl/own", "readOnly": True}
    release = render({"extraVolumes": [volume], "gateway": {"extraVolumeMounts": [mount]}})
    assert volume in release.pod["volumes"]
    assert mount in release.containers["gateway"]["volumeMounts"]
    assert mount not in release.containers["models"]["volumeMounts"]
    for values, name in (({}, "models"), (CPU, "gateway")):
        assert mount in render({**values, "triton": {"extraVolumeMounts": [mount]}}).containers[name]["volumeMounts"]


def test_a_gpu_may_come_from_a_resource_claim():
    claim = {"name": "gpu", "resourceClaimTemplateName": "one-gpu"}
    release = render(
        {"triton": {"gpu": {"count": 0}, "resources": {"claims": [{"name": "gpu"}]}}, "resourceClaims": [claim]}
    )
    assert release.pod["resourceClaims"] == [claim]
    resources = release.containers["models"]["resources"]
    assert resources["claims"] == [{"name": "gpu"}]
    assert resources["limits"] == {"memory": "24Gi"}


def test_the_service_account_may_have_a_role_of_the_cloud():
    annotations = {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x"}
    assert (
        render({"serviceAccount": {"annotations": annotations}}).one("ServiceAccount")["metadata"]["annotations"]
        == annotations
    )


def test_scheduling_values_are_passed_on():
    values = {
        "nodeSelector": {"gpu": "l4"},
        "tolerations": [{"key": "calls", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "priorityClassName": "calls",
        "runtimeClassName": "nvidia",
    }
    pod = render(values).pod
    assert {name: pod[name] for name in values} == values
    assert pod["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"].items() <= (
        render().one("Deployment")["spec"]["template"]["metadata"]["labels"].items()
    )


def test_the_selector_matches_the_serving_pods_only():
    release = render()
    selector = release.one("Deployment")["spec"]["selector"]["matchLabels"].items()
    assert selector <= release.one("Deployment")["spec"]["template"]["metadata"]["labels"].items()
    assert not selector <= release.one("Job")["spec"]["template"]["metadata"]["labels"].items()
    assert not selector <= release.one("Pod")["metadata"]["labels"].items()


def test_the_values_file_has_comments():
    """Every top-level value has a comment."""
    text = (CHART / "values.yaml").read_text()
    assert yaml.safe_load(text).keys() == set(re.findall(r"^(\w+):", text, flags=re.M))
