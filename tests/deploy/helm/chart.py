"""Render the chart with Helm's library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import yaml

CHART = Path(__file__).parents[3] / "deploy" / "helm" / "personaplex"
RELEASE, NAMESPACE = "calls", "voice"
NAME = "calls-personaplex"

SHARED: dict[str, Any] = {"models": {"volume": {"accessModes": ["ReadWriteMany"]}}}
"""A volume that several pods can use."""

Values = Mapping[str, Any]
Manifest = dict[str, Any]


@dataclass(frozen=True)
class Release:
    """The rendered manifests of a release."""

    manifests: list[Manifest]
    notes: str

    def of(self, kind: str) -> list[Manifest]:
        return [manifest for manifest in self.manifests if manifest["kind"] == kind]

    def one(self, kind: str) -> Manifest:
        """The only one of its kind, or the one with the name of the release."""
        found = self.of(kind)
        (manifest,) = found if len(found) == 1 else [each for each in found if each["metadata"]["name"] == NAME]
        return manifest

    @property
    def pod(self) -> dict[str, Any]:
        """The spec of a serving pod."""
        spec: dict[str, Any] = self.one("Deployment")["spec"]["template"]["spec"]
        return spec

    @property
    def containers(self) -> dict[str, dict[str, Any]]:
        """The containers of that pod by name, with its init containers."""
        return {each["name"]: each for each in [*self.pod.get("initContainers", []), *self.pod["containers"]]}

    @property
    def build(self) -> dict[str, Any]:
        """The container of the build job."""
        (container,) = self.one("Job")["spec"]["template"]["spec"]["containers"]
        return container


def environment(container: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment variables with a literal value."""
    return {each["name"]: each["value"] for each in container.get("env", []) if "value" in each}


@cache
def loaded() -> helm_python.Chart:
    return helm_python.Chart.load(CHART)


def render(values: Values | None = None, *, release: str = RELEASE) -> Release:
    """Render the chart. Raises HelmError for invalid values."""
    given = dict(values or {})
    loaded().validate_schema(given)
    files = loaded().render(given, name=release, namespace=NAMESPACE)
    notes = files.pop("personaplex/templates/NOTES.txt")
    manifests = [each for text in files.values() for each in yaml.safe_load_all(text) if each is not None]
    return Release(manifests, notes)
