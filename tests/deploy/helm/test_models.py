"""The build job and the volume of the models."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway import old_models
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


def folder(volume: Path, name: str, built: float | None = None) -> Path:
    """A folder of the volume, with models that were built at a time."""
    (volume / name).mkdir()
    if built is not None:
        (manifest := volume / name / "manifest.json").touch()
        os.utime(manifest, (built, built))
    return volume / name


def kubernetes(*objects: dict[str, Any], status: int = 200) -> Callable[[], httpx.Client]:
    """Connects to an API server with these pods and ReplicaSets of the release, and no others."""

    def answer(request: httpx.Request) -> httpx.Response:
        wanted = dict(each.split("=") for each in request.url.params["labelSelector"].split(","))
        assert wanted.items() <= render().one("Deployment")["spec"]["template"]["metadata"]["labels"].items()
        paths = {"/api/v1/namespaces/voice/pods": "Pod", "/apis/apps/v1/namespaces/voice/replicasets": "ReplicaSet"}
        kind = paths[request.url.path]
        return httpx.Response(status, json={"items": [each for each in objects if each["kind"] == kind]})

    return lambda: httpx.Client(base_url="https://kubernetes", transport=httpx.MockTransport(answer))


def pod(**values: Any) -> dict[str, Any]:
    return {"kind": "Pod", "spec": render(values).pod}


def replica_set(replicas: int, **values: Any) -> dict[str, Any]:
    spec = render(values).one("Deployment")["spec"]
    return {"kind": "ReplicaSet", "spec": {"replicas": replicas, "template": spec["template"]}}


def clean(build: dict[str, Any], volume: Path, monkeypatch: pytest.MonkeyPatch, connect: Any) -> set[str]:
    """Run the step of the build job; return the names that are on the volume then."""
    (line,) = [line for line in build["command"][-1].splitlines() if "old_models" in line]
    variables = environment(build)
    module, *arguments = line.removeprefix("python -m ").split()
    assert module == old_models.__name__
    given = [variables[word.strip('"$')].replace("/volume", str(volume)) for word in arguments]
    monkeypatch.setattr("sys.argv", [module, *given])
    monkeypatch.setattr(old_models, "connect", connect)
    monkeypatch.setenv("NAMESPACE", "voice")
    monkeypatch.setenv("SELECTOR", variables["SELECTOR"])
    old_models.main()
    return {entry.name for entry in volume.iterdir()}


def test_a_build_removes_the_models_that_no_pod_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    names = {slots: Path(folders(render({"slots": slots})).pop()).name for slots in (2, 3, 4, 5, 6, 7)}
    build = render({"slots": 7}).build
    for slots in (2, 3, 4, 5, 6):
        folder(tmp_path, names[slots], built=1000 - slots)
    checkpoint = folder(tmp_path, Path(environment(build)["CHECKPOINT"]).name)
    old_checkpoint = folder(tmp_path, "checkpoint-0123456789")
    others = {folder(tmp_path, name).name for name in ("lost+found", "checkpoint-mine", "models-mine", "voices")}
    (tmp_path / "notes.txt").touch()
    api = kubernetes(pod(slots=3), pod(slots=7), replica_set(2, slots=4), replica_set(0, slots=5))
    left = clean(build, tmp_path, monkeypatch, api)
    # 2: built last. 3: a pod that drains. 4: a ReplicaSet whose pods are not there yet. 7 is not built yet.
    assert left == {names[2], names[3], names[4], checkpoint.name, "notes.txt", *others}
    assert old_checkpoint.name not in left


@pytest.mark.parametrize("connect", [kubernetes(status=403), old_models.connect], ids=["refused", "not in a pod"])
def test_models_stay_if_kubernetes_cannot_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], connect: Any
):
    names = {folder(tmp_path, f"models-{number:010}", built=number).name for number in range(3)}
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert clean(render().build, tmp_path, monkeypatch, connect) == names
    assert capsys.readouterr().out.startswith("earlier models stay: ")


def test_only_the_build_on_the_charts_own_volume_may_list_pods():
    release = render()
    (rule,) = release.one("Role")["rules"]
    assert (rule["resources"], rule["verbs"]) == (["pods", "replicasets"], ["list"])
    assert "token" in {mount["name"] for mount in release.build["volumeMounts"]}
    for container in release.containers.values():
        assert "token" not in {mount["name"] for mount in container["volumeMounts"]}
    shared = render({"models": {"volume": {"existingClaim": "weights"}}})
    assert shared.of("Role") == []
    assert "old_models" not in str(shared.build)
    assert "token" not in {mount["name"] for mount in shared.build["volumeMounts"]}


def test_the_build_may_use_as_many_processors_as_it_has_threads():
    """`model_repository.processors` counts those of the CPU limit."""
    assert render().build["resources"]["limits"] == {"cpu": "2", "memory": "6Gi"}
    more = render({"build": {"resources": {"requests": {"cpu": "16"}, "limits": {"memory": "9Gi"}}}}).build["resources"]
    assert more == {"requests": {"cpu": "16", "memory": "2Gi"}, "limits": {"cpu": "16", "memory": "9Gi"}}


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
