"""Remove models that no pod uses: `python -m gateway.old_models MODELS CHECKPOINT`, a step of the chart's build job.

The chart names a folder after what it is built from, so each upgrade leaves the earlier one on the volume. The
arguments are the folders of this build, which stay. So do folders of pods, also of those that drain, and of ReplicaSets
that have pods; and the models that were built last, for a rollback.

Variables: NAMESPACE; SELECTOR, the labels of the serving pods; those of `gateway.kubernetes`.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import httpx

from gateway.kubernetes import connect

_OURS = re.compile(r"(models|checkpoint)-([0-9a-f]{10}|tiny)")
"""Names that the chart gives. Others are the user's."""


def names_in_use(kubernetes: httpx.Client, namespace: str, selector: str) -> set[str]:
    """Names of the folders that pods have as an argument. Raises httpx.HTTPError."""
    found = []
    for path in (f"/api/v1/namespaces/{namespace}/pods", f"/apis/apps/v1/namespaces/{namespace}/replicasets"):
        listed = kubernetes.get(path, params={"labelSelector": selector}).raise_for_status().json()["items"]
        found += [item["spec"] for item in listed if item["spec"].get("replicas", 1)]
    pods = [spec.get("template", {"spec": spec})["spec"] for spec in found]
    return {Path(word).name for pod in pods for container in pod["containers"] for word in container.get("args", [])}


def remove(models: Path, checkpoint: Path, used: set[str]) -> list[str]:
    """Remove the folders beside `models` that are not needed; return their names. Raises OSError."""
    built = sorted(models.parent.glob("models-*/manifest.json"), key=lambda file: file.stat().st_mtime)
    kept = {models.name, checkpoint.name, *used, *(file.parent.name for file in built[-1:])}
    removed = []
    for folder in sorted(models.parent.iterdir()):
        if _OURS.fullmatch(folder.name) and folder.name not in kept:
            shutil.rmtree(folder)
            removed.append(folder.name)
    return removed


def main() -> None:
    """Remove what is not needed. Nothing, if Kubernetes cannot be asked: the build goes on."""
    models, checkpoint = map(Path, sys.argv[1:])
    try:
        with connect() as kubernetes:
            used = names_in_use(kubernetes, os.environ["NAMESPACE"], os.environ["SELECTOR"])
        removed = remove(models, checkpoint, used)
    except (KeyError, OSError, httpx.HTTPError) as error:
        print(f"earlier models stay: {error!r}")
        return
    for name in removed:
        print(f"removed {name}, which no pod uses")


if __name__ == "__main__":
    main()
