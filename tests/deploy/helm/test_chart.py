"""Rendered manifests are valid for Kubernetes; invalid values are refused."""

from __future__ import annotations

import runpy
import shutil
import tomllib
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml

from gateway.settings import Settings
from model_repository.build import KV_PRECISIONS
from model_repository.variants import Device, variants_of
from tests.deploy.helm.chart import CHART, NAME, RELEASE, SHARED, Release, environment, loaded, render

ROOT = CHART.parents[2]
CUSTOM = {
    "PodMonitor",
    "PrometheusRule",
    "ScaledObject",
    "HTTPRoute",
    "GRPCRoute",
    "BackendTLSPolicy",
    "BackendTrafficPolicy",
}
"""Kinds of custom resources."""

EVERYTHING: dict[str, Any] = {
    "image": {"registry": "registry.example.com/voice", "tag": "1.2", "pullSecrets": ["pull"]},
    "slots": 8,
    "models": {
        "volume": {"accessModes": ["ReadWriteMany"], "storageClassName": "fast", "size": "100Gi"},
        "hub": {"revision": "0123abc", "tokenSecret": {"name": "hugging-face"}},
        "variant": "int8",
    },
    "settings": {"max_call_seconds": 600, "warm": ["NATF2:teacher"], "default_voice": "NATM1", "max_body_bytes": 64e6},
    "apiKeys": {"secretName": "keys"},
    "tls": {"secretName": "certificate"},
    "gateway": {
        "extraEnv": [{"name": "TZ", "value": "UTC"}],
        "extraVolumeMounts": [{"name": "extra", "mountPath": "/extra"}],
    },
    "triton": {"extraEnv": [{"name": "PERSONAPLEX_PREFIX_COLUMNS", "value": "6000"}]},
    "build": {
        "nodeSelector": {"pool": "large"},
        "tolerations": [{"key": "large", "operator": "Exists"}],
        "extraEnv": [{"name": "HF_ENDPOINT", "value": "https://hub.example.com"}],
    },
    "service": {"type": "LoadBalancer", "annotations": {"a": "b"}, "sessionAffinity": "ClientIP"},
    "route": {"enabled": True, "parentRefs": [{"name": "outside"}], "hostnames": ["calls.example.com"]},
    "ingress": {
        "enabled": True,
        "className": "public",
        "annotations": {"timeout": "3600"},
        "hosts": ["calls.example.com"],
        "tls": [{"hosts": ["calls.example.com"], "secretName": "calls"}],
        "grpc": {"enabled": True, "hosts": ["grpc.example.com"], "annotations": {"protocol": "grpc"}},
    },
    "networkPolicy": {"clients": [{"podSelector": {"matchLabels": {"app": "agents"}}}]},
    "autoscaling": {"enabled": True, "kind": "hpa"},
    "rollout": {"maxSurge": 0, "maxUnavailable": "50%"},
    "monitoring": {
        "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "rules": {"enabled": True, "labels": {"release": "prometheus"}},
        "dashboard": {"enabled": True},
    },
    "serviceAccount": {"annotations": {"role": "reads-buckets"}},
    "extraVolumes": [{"name": "extra", "emptyDir": {}}],
    "podLabels": {"team": "voice"},
    "podAnnotations": {"note": "x"},
    "nodeSelector": {"gpu": "l4"},
    "affinity": {"nodeAffinity": {}},
    "topologySpreadConstraints": [{"maxSkew": 2, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}],
    "priorityClassName": "calls",
    "runtimeClassName": "nvidia",
}
CASES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "everything": EVERYTHING,
    "keda": {
        **SHARED,
        "autoscaling": {"enabled": True, "podDeletionCost": True},
        "monitoring": {"podMonitor": {"enabled": True}},
    },
    "cpu": {"device": "cpu", "models": {"tiny": True, "variant": "fp32"}, "tls": {"secretName": "certificate"}},
    "a claim with models": {
        "models": {"source": "claim", "volume": {"existingClaim": "weights"}, "folder": "models/int8"}
    },
    "an image with models to copy": {"models": {"source": "image", "image": {"reference": "r/m:1"}, "folder": "m"}},
    "envoy": {
        **SHARED,
        "replicas": 10,
        "route": {"enabled": True, "parentRefs": [{"name": "outside"}], "envoy": {"enabled": True}},
        "service": {"ipFamilyPolicy": "PreferDualStack", "ipFamilies": ["IPv6", "IPv4"]},
    },
    "a claim with a checkpoint": {"models": {"volume": {"existingClaim": "weights"}, "checkpointFolder": "published"}},
    "pool": {
        **SHARED,
        "replicas": 10,
        "pool": {"enabled": True},
        "tls": {"secretName": "c"},
        "monitoring": {"podMonitor": {"enabled": True}},
    },
    "nothing optional": {"networkPolicy": {"enabled": False}, "podDisruptionBudget": {"enabled": False}},
}


@pytest.fixture(params=CASES, scope="module")
def values(request: pytest.FixtureRequest) -> dict[str, Any]:
    return CASES[request.param]


@pytest.fixture(scope="module")
def release(values: dict[str, Any]) -> Release:
    return render(values)


def test_helm_lint_reports_nothing(values: dict[str, Any]):
    found = helm_python.lint(CHART, values, strict=True, namespace="voice")
    # The chart is in no public index, so it has no icon.
    assert [each for each in found["messages"] if each["error"] != "icon is recommended"] == []


NEWER: dict[str, dict[str, Any]] = {
    "1.33": {"models": {"source": "oci", "image": {"reference": "r/m:1"}, "folder": "models"}},
    "1.34": {
        "triton": {"gpu": {"count": 0}, "resources": {"claims": [{"name": "gpu"}]}},
        "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "one-gpu"}],
    },
}
"""Values that need a newer Kubernetes, by its version."""


@pytest.mark.parametrize("version", NEWER)
def test_manifests_that_need_a_newer_kubernetes_match_its_schemas(version: str):
    for manifest in render(NEWER[version]).manifests:
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("version", ["1.29", "1.33", "1.37"])
def test_manifests_match_the_schemas_of_kubernetes(release: Release, version: str):
    """Validated with the strict schemas of Kubernetes."""
    for manifest in release.manifests:
        if manifest["kind"] not in CUSTOM:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_manifests_have_labels_and_unique_names(release: Release):
    names = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in release.manifests]
    assert len(set(names)) == len(names)
    for _, name in names:
        assert name.startswith(NAME)
        assert len(name) <= 63
    for manifest in release.manifests:
        assert (
            manifest["metadata"]["labels"].items()
            >= {
                "app.kubernetes.io/name": "personaplex",
                "app.kubernetes.io/instance": RELEASE,
            }.items()
        )


def test_names_of_a_long_release_name_are_valid():
    for manifest in render(EVERYTHING, release="a" * 53).manifests:
        assert len(manifest["metadata"]["name"]) <= 63


def test_chart_images_and_project_have_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert loaded().version == project["version"]
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    images = {name: container["image"] for name, container in render().containers.items() if name in compose}
    assert images == {name: service["image"] for name, service in compose.items()}


def test_registry_and_tag_apply_to_all_images():
    release = render({"image": {"registry": "registry.example.com/voice", "tag": "1.2"}})
    images = {container["image"] for container in [*release.containers.values(), release.build]}
    assert images == {f"registry.example.com/voice/personaplex-{name}:1.2" for name in ("gateway", "cpu", "models")}


def test_images_may_be_fixed_by_their_digest():
    digests = {name: f"sha256:{number:064x}" for number, name in enumerate(("gateway", "cpu", "models"))}
    release = render({"image": {"digests": digests}})
    for container, name in ((release.containers["gateway"], "gateway"), (release.build, "cpu")):
        assert container["image"] == f"personaplex-{name}:{loaded().version}@{digests[name]}"
    assert release.build["image"] != render().build["image"]
    assert environment(release.build)["MODELS"] != environment(render().build)["MODELS"]


def test_the_image_with_onnx_runtime_builds_and_serves_on_a_cpu():
    def names(release: Release) -> set[str]:
        tests = [each["image"] for each in release.one("Pod")["spec"]["containers"]]
        return {
            image.rpartition(":")[0] for image in [*tests, *(each["image"] for each in release.containers.values())]
        }

    cpu = render({"device": "cpu", "models": {"variant": "fp32"}})
    assert names(cpu) == {"personaplex-cpu"}
    assert names(render()) == {"personaplex-gateway", "personaplex-models"}
    assert {release.build["image"].rpartition(":")[0] for release in (cpu, render())} == {"personaplex-cpu"}


def test_the_schema_of_settings_is_the_gateways():
    script = CHART.parent / "settings_schema.py"
    expected = runpy.run_path(str(script))["settings_schema"]()
    found = loaded().schema["properties"]["settings"]["properties"]
    assert found == expected, "run `python deploy/helm/settings_schema.py`"


def test_settings_reach_the_gateway_unchanged(monkeypatch: pytest.MonkeyPatch):
    given = {
        "max_body_bytes": 640000000,
        "max_call_seconds": 12.5,
        "allow_voice_audio": True,
        "default_voice": "NATM1",
        "warm": ["NATF2:You are a teacher.", 'NATM1:Say "no".'],
        "allowed_origins": [],
    }
    variables = environment(render({"settings": given}).containers["gateway"])
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert Settings.unknown(variables) == []
    settings = Settings()
    assert {name: getattr(settings, name) for name in given} == given


def test_variants_are_those_of_the_build():
    variant = loaded().schema["properties"]["models"]["properties"]["variant"]["enum"]
    assert set(variant) == {name for device in Device for name in variants_of(device)}
    kept = loaded().schema["properties"]["models"]["properties"]["kvPrecision"]["enum"]
    assert kept == ["", *KV_PRECISIONS]
    for device in Device:
        for name in variant:
            values = {"device": device.value, "models": {"variant": name}}
            if name in variants_of(device):
                render(values)
            else:
                with pytest.raises(helm_python.HelmError, match="variant"):
                    render(values)


@pytest.mark.parametrize("enabled", [True, False])
def test_an_umbrella_chart_includes_it_on_condition(tmp_path: Path, enabled: bool):
    umbrella = tmp_path / "umbrella"
    shutil.copytree(CHART, umbrella / "charts" / "personaplex")
    dependency = {"name": "personaplex", "version": loaded().version, "condition": "personaplex.enabled"}
    chart = {"apiVersion": "v2", "name": "umbrella", "version": "1.0.0", "dependencies": [dependency]}
    (umbrella / "Chart.yaml").write_text(yaml.safe_dump(chart))
    values = {"personaplex": {"enabled": enabled, "slots": 8}, "global": {"region": "x"}}
    files = helm_python.Chart.load(umbrella).render(values, name=RELEASE, namespace="voice")
    assert any(name.endswith("deployment.yaml") and text.strip() for name, text in files.items()) == enabled


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"replica": 2}, "replica"),
        ({"replicas": "two"}, "replicas"),
        ({"replicas": 2}, "ReadWriteMany"),
        ({"autoscaling": {"enabled": True, "kind": "hpa"}}, "ReadWriteMany"),
        ({"slots": 0}, "slots"),
        ({"device": "tpu"}, "device"),
        ({"image": {"digests": {"gateway": "1.2"}}}, "digests"),
        ({"settings": {"max_call_secs": 600}}, "max_call_secs"),
        ({"settings": {"max_call_seconds": 0}}, "max_call_seconds"),
        ({"settings": {"warm": "NATF2"}}, "warm"),
        ({"settings": {"port": 80}}, "port"),
        ({"models": {"source": "claim", "folder": "../elsewhere"}}, "folder"),
        ({"models": {"source": "claim", "folder": "/models"}}, "folder"),
        ({"models": {"source": "claim", "folder": "models"}}, "existingClaim"),
        ({"models": {"source": "claim", "volume": {"existingClaim": "weights"}}}, "folder"),
        ({"models": {"source": "oci", "folder": "models"}}, "reference"),
        ({"models": {"source": "image", "image": {"reference": "r/m:1"}}}, "folder"),
        ({"models": {"source": "s3"}}, "source"),
        ({"models": {"folder": "models"}}, "folder"),
        ({"service": {"ipFamilies": ["IPv5"]}}, "ipFamilies"),
        ({"gateway": {"extraVolumeMounts": [{"name": "x"}]}}, "mountPath"),
        (
            {
                **SHARED,
                "pool": {"enabled": True},
                "route": {"enabled": True, "parentRefs": [{"name": "g"}], "envoy": {"enabled": True}},
            },
            "choose one",
        ),
        ({"models": {"kvPrecision": "fp16"}}, "kvPrecision"),
        ({"models": {"hub": {"repository": "personaplex"}}}, "repository"),
        ({"models": {"hub": {"tokenSecret": {"value": "hf_1"}}}}, "tokenSecret"),
        ({"apiKeys": {"keys": ["secret"]}}, "apiKeys"),
        ({"route": {"enabled": True}}, "parentRefs"),
        ({"ingress": {"enabled": True}}, "hosts"),
        ({"ingress": {"grpc": {"enabled": True}}}, "hosts"),
        ({"autoscaling": {"target": 1.5}}, "target"),
        ({**SHARED, "autoscaling": {"enabled": True, "kind": "hpa", "min": 5, "max": 4}}, "autoscaling.min is 5"),
        ({**SHARED, "autoscaling": {"enabled": True, "kind": "keda"}}, "monitoring.podMonitor"),
        (
            {"route": {"enabled": True, "parentRefs": [{"name": "g"}]}, "tls": {"secretName": "c"}},
            "backendTLS.hostname",
        ),
        ({"drainSeconds": -1}, "drainSeconds"),
    ],
)
def test_invalid_values_are_refused_by_name(values: dict[str, Any], named: str):
    with pytest.raises(helm_python.HelmError, match=named):
        render(values)


def test_the_notes_describe_the_next_steps():
    notes = render().notes
    assert "app.kubernetes.io/component=build" in notes
    assert f"service/{NAME} 8998:8998" in notes
    assert "every client that can reach the service can use it" in notes
    models = {"source": "claim", "volume": {"existingClaim": "weights"}, "folder": "m"}
    ready = render({"models": models, "apiKeys": {"secretName": "k"}, "tls": {"secretName": "t"}}).notes
    assert "component=build" not in ready
    assert "every client" not in ready
    assert "https://localhost:8998" in ready
