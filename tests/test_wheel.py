"""Releases: the sdist and the wheel have every file, and the wheel serves from an empty environment."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSION = PROJECT["version"]
PACKAGES = ("gateway/", "loadtest/", "model_repository/")
NOT_INSTALLED = ("gateway/client-ts/", "loadtest/results/", "loadtest/bench/models/results/")
"""Sources of the TypeScript client, whose build is installed, and results of benchmarks."""


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).exists()]


def run(*command: object, cwd: Path) -> str:
    """Run a command without this environment's packages and settings, and return what it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PERSONAPLEX"))}
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel that was built from it, of a copy of the tracked files."""
    folder = tmp_path_factory.mktemp("release")
    for name in tracked():
        target = folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    subprocess.run(
        [sys.executable, "-m", "build", "--outdir", folder / "dist", folder / "source"], check=True, capture_output=True
    )
    return folder / "dist"


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    return dist / f"personaplex_triton-{VERSION}-py3-none-manylinux_2_28_x86_64.whl"


def test_every_file_states_the_same_version() -> None:
    chart = yaml.safe_load((ROOT / "deploy/helm/personaplex/Chart.yaml").read_text())
    client = json.loads((ROOT / "gateway/client-ts/package.json").read_text())
    locked = json.loads((ROOT / "gateway/client-ts/package-lock.json").read_text())
    stated = {chart["version"], chart["appVersion"], client["version"], locked["version"]}
    stated |= set(re.findall(r"image: personaplex-\w+:(\S+)", (ROOT / "deploy/compose.yaml").read_text()))
    for page in (ROOT / "docs").glob("*.md"):
        stated |= set(
            re.findall(r"(?:personaplex-(?:gateway|models):|personaplex_triton-)(\d+\.\d+\.\d+)", page.read_text())
        )
    readme = (ROOT / "README.md").read_text()
    stated |= set(re.findall(r"badge/version-([\d.]+)-", readme))
    assert stated == {VERSION}
    lowest, above = re.findall(r"3\.(\d+)", PROJECT["requires-python"])
    assert f"badge/Python-3.{lowest}_to_3.{int(above) - 1}-" in readme
    assert f"badge/licence-{PROJECT['license']}-" in readme
    assert f"\n## {VERSION}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_notice_lists_every_library_that_is_installed() -> None:
    notice = (ROOT / "NOTICE").read_text()
    needed = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["cpu"]]
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in needed}
    assert {name for name in names if not re.search(rf"\b{name}\b", notice)} == set()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_sdist_and_wheel_have_every_file(dist: Path, wheel: Path) -> None:
    installed = {name for name in tracked() if name.startswith(PACKAGES) and not name.startswith(NOT_INSTALLED)}
    client = {name for name in tracked() if name.startswith("gateway/client-ts/dist/") and name.endswith(".js")}
    files = set(zipfile.ZipFile(wheel).namelist())
    assert installed | client | {"model_repository/serving/native/kernels.so"} <= files
    with tarfile.open(dist / f"personaplex_triton-{VERSION}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert installed | client | {"setup.py", "pyproject.toml", "LICENSE", "NOTICE"} <= names


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_wheel_serves_from_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    pip = (tmp_path / "env/bin/python", "-m", "pip", "--disable-pip-version-check")
    personaplex = tmp_path / "env/bin/personaplex"
    triton = re.search(r"^nvidia-pytriton==\S+$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert triton
    run(*pip, "install", f"{wheel}[cpu]", cwd=tmp_path)
    run(*pip, "install", "--no-deps", triton[0], cwd=tmp_path)
    run(*pip, "install", "--dry-run", f"{wheel}[docs,evaluate,loadtest,otel]", cwd=tmp_path)
    assert run(personaplex, "--version", cwd=tmp_path) == f"personaplex {VERSION}\n"
    assert json.loads(run(personaplex, "doctor", "--json", cwd=tmp_path))["runnable"]
    assert "answer:   The capital of France is Paris." in run(personaplex, "demo", cwd=tmp_path)
