"""Run the containers' commands on this machine, with folders instead of mounts."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx
import pytest
from packaging.utils import canonicalize_name

from gateway.triton_server.installation import TritonInstallation
from gateway.triton_server.options import TritonOptions
from gateway.triton_server.server import _link_python_backend
from tests.conftest import GOLDEN
from tests.deploy.helm.chart import CHART, SHARED, environment, render
from tests.deploy.test_containers import without_runtime
from tests.model_repository.checkpoint.fake_hub import COMMIT, FakeHub, running

PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
ON_CPU: dict[str, Any] = {"device": "cpu", "slots": 2, "models": {"tiny": True, "variant": "fp32"}}
KEYS = '["the first key", "another"]'

Container = Mapping[str, Any]


class Mounts:
    """Folders of this machine in place of a pod's mounts."""

    def __init__(self, folder: Path) -> None:
        self.volume, self.scratch = folder / "volume", folder / "scratch"
        for mount in (self.volume, self.scratch):
            mount.mkdir()

    def here(self, text: str) -> str:
        return text.replace("/volume/", f"{self.volume}/").replace("cd /tmp", f"cd {self.scratch}")

    def words(self, words: list[str]) -> list[str]:
        return [self.here(word) for word in words]

    def variables(self, container: Container, **more: str) -> dict[str, str]:
        given = {name: self.here(value) for name, value in environment(container).items()}
        return {**os.environ, **given, "HOME": str(self.scratch), "PATH": PATH, **more}

    def run(self, container: Container, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a container to its end."""
        return subprocess.run(
            self.words(container["command"]),
            env=self.variables(container, **more),
            cwd=self.scratch,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    @contextmanager
    def serving(self, container: Container, *, triton: str | None = None, **more: str) -> Iterator[str]:
        """Run the gateway on free loopback ports and yield its URL."""
        words = self.words(container["args"])
        if triton is not None:
            words[words.index("--triton") + 1] = triton
        local = {"PERSONAPLEX_HOST": "127.0.0.1", "PERSONAPLEX_PORT": "0"}
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway.cli", *words],
            env=self.variables(container, **{"PYTHONPATH": str(CHART.parents[2]), **local, **more}),
            cwd=self.scratch,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            assert first.startswith("PersonaPlex is ready: ")
            yield first.split()[-1]
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def mounts(tmp_path_factory: pytest.TempPathFactory) -> Mounts:
    """Mounts with models that the job has built, at its second attempt."""
    mounts = Mounts(tmp_path_factory.mktemp("pod"))
    release = render(ON_CPU)
    left = Path(mounts.here(environment(release.build)["CHECKPOINT"]))
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half of it")
    waiting = subprocess.Popen(
        mounts.words(release.containers["wait"]["command"]),
        env=mounts.variables(release.containers["wait"]),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert waiting.stdout is not None
    assert waiting.stdout.readline().startswith("waiting for the build of")
    assert waiting.poll() is None
    os.killpg(waiting.pid, signal.SIGKILL)
    waiting.communicate()
    done = mounts.run(release.build)
    assert done.returncode == 0, done.stderr
    return mounts


def built(mounts: Mounts) -> Path:
    return Path(mounts.here(environment(render(ON_CPU).build)["MODELS"]))


def test_the_job_builds_according_to_the_values_once(mounts: Mounts):
    manifest = built(mounts) / "manifest.json"
    content = json.loads(manifest.read_text())
    assert (content["slots"], content["variant"], content["device"]) == (2, "fp32", "cpu")
    before = manifest.stat()
    again = mounts.run(render(ON_CPU).build)
    assert (again.returncode, again.stdout.splitlines()[1:]) == (0, [f"{built(mounts)} exists"])
    assert manifest.stat().st_mtime_ns == before.st_mtime_ns
    waited = mounts.run(render(ON_CPU).containers["wait"])
    assert (waited.returncode, waited.stdout) == (0, "")


# The short forms are the job's test, which builds, and the download's own.
@pytest.mark.long
def test_the_published_checkpoint_is_downloaded_and_built(tmp_path: Path):
    """With the token of the secret and a fake Hub."""
    mounts, checkpoint = Mounts(tmp_path), GOLDEN / "checkpoint"
    files = {str(path.relative_to(checkpoint)): path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()}
    build = render({"slots": 2, "models": {"hub": {"tokenSecret": {"name": "hugging-face"}}}}).build
    with running(FakeHub(files, gated=True, tokens=frozenset({"token-in"}))) as hub:
        refused = mounts.run(build, HF_ENDPOINT=hub.url, HF_TOKEN="")
        done = mounts.run(build, HF_ENDPOINT=hub.url, HF_TOKEN="token-in")
    assert refused.returncode == 2
    assert done.returncode == 0, done.stderr
    assert COMMIT in done.stderr
    manifest = json.loads(Path(mounts.here(environment(build)["MODELS"]), "manifest.json").read_text())
    assert (manifest["slots"], manifest["variant"], manifest["device"]) == (2, "bf16", "cuda")


def test_a_failing_job_has_an_error_status(tmp_path: Path):
    mounts = Mounts(tmp_path)
    failed = mounts.run(render({"models": {"checkpointFolder": "missing"}}).build)
    assert failed.returncode == 2
    assert "missing" in failed.stderr


def test_the_gateway_serves_the_built_models_and_helm_test_passes(mounts: Mounts):
    keyed = {**ON_CPU, "apiKeys": {"secretName": "keys"}}
    release = render({**keyed, "settings": {"retry_after": 17}})
    gateway = release.containers["gateway"]
    with mounts.serving(gateway, PERSONAPLEX_API_KEYS=KEYS) as url:
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert httpx.get(f"{url}{gateway[probe]['httpGet']['path']}").status_code == 200
        (call,) = release.one("Pod")["spec"]["containers"]
        finished = mounts.run(call, SERVER=url, KEYS=KEYS)
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout.startswith("the answer has 1.04 s")
        refused = mounts.run(call, SERVER=url, KEYS='["a wrong one"]')
        assert refused.returncode == 2
        assert "key" in refused.stderr


# The short forms are the tests of a drain, and of the rendered hook.
@pytest.mark.long
def test_a_pod_of_the_pool_drains_from_the_pre_stop_hook_on(mounts: Mounts):
    release = render(
        {**ON_CPU, **SHARED, "models": {**ON_CPU["models"], **SHARED["models"]}, "pool": {"enabled": True}}
    )
    hook = release.containers["gateway"]["lifecycle"]["preStop"]["exec"]["command"]
    assert hook[-1].endswith("; sleep 10")
    hook[-1] = hook[-1].replace("sleep 10", "sleep 0")
    with mounts.serving(release.containers["gateway"], XDG_RUNTIME_DIR=str(mounts.scratch)) as url:
        assert httpx.get(f"{url}/readyz").status_code == 200
        variables = mounts.variables(release.containers["gateway"], XDG_RUNTIME_DIR=str(mounts.scratch))
        subprocess.run(hook, env={**variables, "PERSONAPLEX_PORT": url.rpartition(":")[2]}, timeout=60, check=True)
        assert httpx.get(f"{url}/readyz").status_code == 503


def listens(address: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0


def until(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def copy_triton(folder: Path) -> Path:
    """Copy the installed Triton as the Dockerfile copies that of NVIDIA's image; return the copy."""
    installation = TritonInstallation.find()
    installed, copy = folder / "installed", folder / "tritonserver"
    _link_python_backend(installation, installed / "backends" / "python")
    (installed / "bin").mkdir()
    (installed / "bin" / "tritonserver").symlink_to(installation.binary)
    (installed / "lib").symlink_to(installation.libraries)
    given = installation.environment(os.environ)
    subprocess.run(["sh", CHART.parents[1] / "copy-triton.sh", installed, copy], env=given, check=True)
    return copy


@pytest.fixture
def triton(mounts: Mounts, tmp_path: Path) -> Iterator[tuple[TritonOptions, Container]]:
    """Run the sidecar's script with the chart's arguments, on other ports and with a copy of the installed Triton."""
    sidecar = render().containers["models"]
    ports = TritonOptions().with_free_ports()
    installation = TritonInstallation.find()
    copy = copy_triton(tmp_path)
    added = [
        f"--backend-directory={copy / 'backends'}",
        f"--http-port={ports.http_port}",
        f"--grpc-port={ports.grpc_port}",
        f"--metrics-port={ports.metrics_port}",
        f"--backend-config=python,shm-region-prefix-name=personaplex_{secrets.token_hex(4)}_",
    ]
    variables = installation.environment(mounts.variables(sidecar, MODELS=str(built(mounts))))
    variables["PATH"] = os.pathsep.join([variables["PATH"], str(copy / "bin")])
    # The base image has a libpython.
    libraries = [copy / "lib", *filter(None, [installation.libpython])]
    variables["LD_LIBRARY_PATH"] = os.pathsep.join(map(str, libraries))
    process = subprocess.Popen(
        ["sh", CHART.parents[1] / "serve-models.sh", *sidecar["args"], *added],
        env=variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield ports, sidecar
        used = Path(f"/proc/{process.pid}/maps").read_text()
        assert str(copy / "lib") in used
        assert str(installation.libraries) not in used
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def slim(tmp_path: Path) -> str:
    """PYTHONPATH of the gateway's image: without the packages that only the image for CPUs has."""
    absent = {canonicalize_name(name) for name in without_runtime()}
    owners = metadata.packages_distributions()
    modules = {module for module, names in owners.items() if {canonicalize_name(name) for name in names} & absent}
    assert {"onnxruntime", "onnx", "pytriton"} <= modules
    (tmp_path / "slim").mkdir()
    (tmp_path / "slim" / "sitecustomize.py").write_text(
        f"import sys\nsys.modules.update(dict.fromkeys({sorted(modules)!r}))\n"
    )
    return os.pathsep.join([str(tmp_path / "slim"), str(CHART.parents[2])])


def test_the_sidecar_starts_and_serves_on_loopback_only(
    mounts: Mounts, triton: tuple[TritonOptions, Container], slim: str
):
    ports, sidecar = triton

    def probed(name: str) -> bool:
        command = [word.replace("8000", str(ports.http_port)) for word in sidecar[name]["exec"]["command"]]
        return subprocess.run(command, env={"PATH": PATH}, capture_output=True, timeout=30, check=False).returncode == 0

    until(lambda: probed("startupProbe"), 60)
    assert probed("livenessProbe")
    # A server on all interfaces also accepts connections to other addresses of 127/8.
    until(lambda: listens("127.0.0.2", ports.metrics_port or 0), 10)
    for port in (ports.http_port, ports.grpc_port):
        assert listens("127.0.0.1", port)
        assert not listens("127.0.0.2", port)
    volume = {"existingClaim": "models"}
    release = render({"models": {"source": "claim", "volume": volume, "folder": built(mounts).name}})
    gateway = release.containers["gateway"]
    with mounts.serving(gateway, triton=f"127.0.0.1:{ports.http_port}", PYTHONPATH=slim) as url:
        (call,) = release.one("Pod")["spec"]["containers"]
        finished = mounts.run(call, SERVER=url, PYTHONPATH=slim)
        assert finished.returncode == 0, finished.stderr
