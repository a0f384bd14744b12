"""The build job and the volume of the models."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.download import REPOSITORY, REVISION
from tests.deploy.helm.chart import NAME, Release, environment, render

CLAIM: dict[str, Any] = {"models": {"source": "claim", "volume": {"existingClaim": "weights"}, "folder": "a/b"}}
IMAGE: dict[str, Any] = {"reference": "registry.example.com/voice/models:7", "pullPolicy": "Always"}


def folders(release: Release) -> set[str]:
    """Return the folder of the models as each container has it."""
    found = {environment(each)["MODELS"] for each in release.containers.values() if "MODELS" in environment(each)}
    found.add(release.containers["gateway"]["args"][1])
    if release.of("Job"):
        found.add(environment(release.build)["MODELS"])
    return found


def test_all_containers_use_the_same_folder_of_the_volume():
    for values in ({}, {"device": "cpu", "models": {"variant": "int8"}}, CLAIM):
        release = render(values)
        (folder,) = folders(release)
        assert folder.startswith("/volume/")
        pods = [release.pod, *(job["spec"]["template"]["spec"] for job in release.of("Job"))]
        for pod in pods:
            (volume,) = [each for each in pod["volumes"] if each["name"] == "models"]
            assert volume["persistentVolumeClaim"]["claimName"] == ("weights" if values == CLAIM else f"{NAME}-models")
            for container in [*pod.get("initContainers", []), *pod["containers"]]:
                mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
                assert mounts["models"]["mountPath"] == "/volume"


def test_only_the_job_can_write_to_the_volume():
    release = render()
    for container in release.containers.values():
        (mount,) = [each for each in container["volumeMounts"] if each["name"] == "models"]
        assert mount["readOnly"] is True
    (mount,) = [each for each in release.build["volumeMounts"] if each["name"] == "models"]
    assert "readOnly" not in mount


@pytest.mark.parametrize(
    "values",
    [
        {"slots": 16},
        {"image": {"tag": "1.2"}},
        {"models": {"variant": "int8"}},
        {"models": {"hub": {"revision": "0123abc"}}},
        {"models": {"hub": {"repository": "nvidia/another"}}},
        {"models": {"checkpointFolder": "mine"}},
        {"models": {"tiny": True}},
        {"device": "cpu", "models": {"variant": "int8"}},
        {"device": "cpu", "models": {"variant": "int8", "kvPrecision": "fp16"}},
    ],
)
def test_other_build_parameters_have_another_folder_and_job(values: dict[str, Any]):
    before, after = render(), render(values)
    assert folders(before) != folders(after)
    assert before.one("Job")["metadata"]["name"] != after.one("Job")["metadata"]["name"]


def test_the_name_of_the_job_depends_on_its_content():
    """Jobs are immutable in Kubernetes."""
    before = render().one("Job")
    changed = render({"build": {"resources": {"limits": {"memory": "9Gi"}}}}).one("Job")
    assert before["spec"] != changed["spec"]
    assert before["metadata"]["name"] != changed["metadata"]["name"]
    unchanged = render({"settings": {"idle_seconds": 5}, "monitoring": {"rules": {"enabled": True}}})
    assert unchanged.one("Job") == before
    assert folders(unchanged) == folders(render())


def test_the_job_runs_on_the_nodes_of_the_pods_by_default():
    """Many volumes are bound to the zone of the first pod that mounts them."""
    pods = {"nodeSelector": {"gpu": "l4"}, "tolerations": [{"key": "gpu", "operator": "Exists"}]}
    elsewhere = {"nodeSelector": {"pool": "large"}, "tolerations": [{"key": "large", "operator": "Exists"}]}
    for values, expected in ((pods, pods), ({**pods, "build": elsewhere}, elsewhere)):
        job = render(values).one("Job")["spec"]["template"]["spec"]
        assert {name: job[name] for name in expected} == expected


def test_the_default_checkpoint_is_that_of_the_command_line():
    variables = environment(render().build)
    assert (variables["REPOSITORY"], variables["REVISION"]) == (REPOSITORY, REVISION)


def test_the_token_comes_from_a_secret():
    release = render({"models": {"hub": {"tokenSecret": {"name": "hugging-face", "key": "hf"}}}})
    (variable,) = [each for each in release.build["env"] if each["name"] == "HF_TOKEN"]
    assert variable["valueFrom"] == {"secretKeyRef": {"name": "hugging-face", "key": "hf"}}
    assert "HF_TOKEN" not in str(release.one("Deployment"))
    assert "HF_TOKEN" not in str(render().build)


def test_the_volume_is_kept_when_the_release_is_uninstalled():
    claim = render({"models": {"volume": {"size": "99Gi", "storageClassName": "fast"}}}).one("PersistentVolumeClaim")
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert claim["spec"]["resources"]["requests"]["storage"] == "99Gi"
    assert claim["spec"]["storageClassName"] == "fast"


def test_existing_models_are_neither_built_nor_waited_for():
    release = render(CLAIM)
    assert release.of("PersistentVolumeClaim") == []
    assert release.of("Job") == []
    assert list(release.containers) == ["models", "gateway"]
    assert folders(release) == {"/volume/a/b"}
    (volume,) = [each for each in release.pod["volumes"] if each["name"] == "models"]
    assert volume["persistentVolumeClaim"]["claimName"] == "weights"


def test_models_of_an_image_volume_are_mounted_read_only():
    release = render({"replicas": 3, "models": {"source": "oci", "image": IMAGE, "folder": "models/int8"}})
    assert (release.of("Job"), release.of("PersistentVolumeClaim")) == ([], [])
    assert list(release.containers) == ["models", "gateway"]
    assert folders(release) == {"/volume/models/int8"}
    (volume,) = [each for each in release.pod["volumes"] if each["name"] == "models"]
    assert volume["image"] == IMAGE
    assert release.one("Deployment")["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


def test_models_of_another_image_are_copied_before_the_pod_starts(tmp_path: Path):
    values = {"source": "image", "image": {**IMAGE, "size": "9Gi"}, "folder": "built/int8"}
    release = render({"replicas": 3, "models": values})
    assert (release.of("Job"), release.of("PersistentVolumeClaim")) == ([], [])
    assert list(release.containers) == ["copy", "models", "gateway"]
    (volume,) = [each for each in release.pod["volumes"] if each["name"] == "models"]
    assert volume["emptyDir"] == {"sizeLimit": "9Gi"}
    copy = release.containers["copy"]
    assert (copy["image"], copy["imagePullPolicy"]) == (IMAGE["reference"], "Always")
    # Run it in folders of this machine, twice: a container that is interrupted starts again.
    (source := tmp_path / "built" / "int8").mkdir(parents=True)
    (source / "manifest.json").write_text("{}")
    (target := tmp_path / "volume").mkdir()
    (models,) = folders(release)
    for _ in range(2):
        subprocess.run([word.replace("/", f"{tmp_path}/", 1) for word in copy["command"]], check=True)
    assert (target.parent / models.lstrip("/") / "manifest.json").read_text() == "{}"


def test_a_volume_of_one_node_blocks_neither_the_job_nor_an_upgrade():
    """Whichever of them mounts it first."""
    release = render()
    assert release.one("PersistentVolumeClaim")["spec"]["accessModes"] == ["ReadWriteOnce"]
    (term,) = release.one("Job")["spec"]["template"]["spec"]["affinity"]["podAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    pod = release.one("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert term["topologyKey"] == "kubernetes.io/hostname"
    assert term["labelSelector"]["matchLabels"].items() <= pod.items()
    assert release.one("Deployment")["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}


@pytest.mark.parametrize("volume", [{"accessModes": ["ReadWriteMany"]}, {"existingClaim": "weights"}])
def test_a_volume_of_several_nodes_restricts_nothing(volume: dict[str, Any]):
    release = render({"replicas": 4, "models": {"volume": volume}})
    assert "affinity" not in release.one("Job")["spec"]["template"]["spec"]
    assert release.one("Deployment")["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
