from __future__ import annotations

import shutil
import socket
import tempfile
from collections import namedtuple
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from onnxruntime.capi import build_and_package_info

from gateway.cli import checks
from gateway.cli.checks import GIB, MIB, Status
from gateway.manifest import Manifest
from gateway.triton_server import TritonInstallation, TritonNotInstalledError
from model_repository.serving import device
from model_repository.serving.host import HostMemory

Usage = namedtuple("Usage", "total used free")


def test_this_machine_can_serve(tiny_models: Path) -> None:
    found = {check.name: check for check in checks.run_checks(tiny_models)}
    assert {name for name, check in found.items() if check.status is Status.FAIL} == set()
    assert {
        "Python",
        "Triton parts",
        "Triton runs",
        "ONNX Runtime",
        "CPU kernels",
        "GPU",
        "memory",
        "disk",
        "port",
        "models",
    } < set(found)
    assert "CPU" in found["ONNX Runtime"].found


def test_every_failure_states_a_remedy() -> None:
    for check in checks.run_checks():
        assert (check.status is Status.OK) == (check.mend == "")


@pytest.mark.parametrize(
    ("version", "status"), [((3, 10), Status.FAIL), ((3, 11), Status.OK), ((3, 13), Status.OK), ((3, 14), Status.FAIL)]
)
def test_python_must_have_a_triton_stub(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int], status: Status
) -> None:
    monkeypatch.setattr(checks.sys, "version_info", (*version, 0, "final", 0))
    assert checks.python().status is status


def test_a_missing_part_has_a_problem_and_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise TritonNotInstalledError("libpython is not there: apt-get install libpython")

    monkeypatch.setattr(TritonInstallation, "find", missing)
    check = checks.installation()
    assert (check.status, check.found, check.mend) == (
        Status.FAIL,
        "libpython is not there",
        "apt-get install libpython",
    )
    assert checks.triton().status is Status.FAIL


def test_a_server_that_does_not_start_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "MODEL", "import no_such_module")
    check = checks.triton()
    assert check.status is Status.FAIL
    assert "No module named 'no_such_module'" in check.found


def test_without_the_driver_the_cpu_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(_: str) -> None:
        raise OSError

    monkeypatch.setattr(checks.ctypes, "CDLL", no_library)
    assert checks.gpu().status is Status.WARN


class Libraries:
    """Fake of `ctypes.CDLL`: a driver with one device, and CUDA's libraries except `missing`."""

    def __init__(self, *missing: str) -> None:
        self._missing = missing

    def __call__(self, name: str) -> Libraries:
        if name in self._missing:
            raise OSError(name)
        return self

    def cuInit(self, _flags: int) -> int:  # noqa: N802
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = 1
        return 0

    def cuDeviceGetName(self, name: Any, _size: int, _device: int) -> int:  # noqa: N802
        name.value = b"NVIDIA H100"
        return 0


@pytest.mark.parametrize(
    ("providers", "missing", "status", "found"),
    [
        (["CUDA", "CPU"], (), Status.OK, "1 × NVIDIA H100, without the operator for int8 keys and values"),
        (["CPU"], (), Status.WARN, "1 × NVIDIA H100, but this ONNX Runtime has no CUDA"),
        (
            ["CUDA", "CPU"],
            ("libcublasLt.so.13", "libcudnn.so.9"),
            Status.FAIL,
            "1 × NVIDIA H100, but libcublasLt.so.13, libcudnn.so.9 cannot be loaded",
        ),
    ],
)
def test_a_gpu_needs_an_onnx_runtime_with_cuda_and_its_libraries(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    providers: list[str],
    missing: tuple[str, ...],
    status: Status,
    found: str,
) -> None:
    monkeypatch.setattr(checks.ctypes, "CDLL", Libraries(*missing))
    monkeypatch.setattr(device, "OPERATORS", tmp_path / "int8_kv_attention.so")
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: [f"{name}ExecutionProvider" for name in providers]
    )
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(build_and_package_info, "cuda_version", "13.0", raising=False)
    check = checks.gpu()
    assert (check.status, check.found) == (status, found)
    assert bool(check.mend) is (status is not Status.OK)
    device.OPERATORS.touch()
    assert ("with the operator" in checks.gpu().found) is (status is Status.OK)


def test_a_machine_without_the_kernels_can_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSONAPLEX_CPU_KERNELS", "0")
    check = checks.kernels()
    assert (check.status, check.found) == (Status.WARN, "PERSONAPLEX_CPU_KERNELS is 0")
    assert "ONNX Runtime's own kernels" in check.mend


def test_two_installed_onnx_runtimes_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.metadata, "version", lambda _: "1.31.1")
    check = checks.onnx_runtime()
    assert check.status is Status.FAIL
    assert "onnxruntime and onnxruntime-gpu are both installed" in check.found
    assert check.mend.startswith("pip uninstall onnxruntime onnxruntime-gpu")


def test_a_repository_for_cuda_needs_cuda(cuda_models: Path) -> None:
    check = checks.repository(cuda_models)
    assert check.status is Status.FAIL
    assert "built for CUDA, which is not available" in check.found


@pytest.mark.parametrize(
    ("free", "status"), [(GIB // 2, Status.FAIL), (GIB + GIB // 2, Status.WARN), (4 * GIB, Status.OK)]
)
def test_memory_is_compared_with_the_free_memory(monkeypatch: pytest.MonkeyPatch, free: int, status: Status) -> None:
    monkeypatch.setattr(HostMemory, "free", lambda _: free)
    assert checks.memory().status is status


@pytest.mark.parametrize(
    ("free", "found"),
    [
        (5 * GIB, "no variant fits"),
        (16 * GIB, "int4 with 13 slots, int8 with 9 slots, mixed with 6 slots; on a CPU"),
        (64 * GIB, "fp16 with 21 slots, fp32 with 10 slots"),
    ],
)
def test_the_variants_of_the_published_model_that_fit_are_named(
    monkeypatch: pytest.MonkeyPatch, free: int, found: str
) -> None:
    monkeypatch.setattr(HostMemory, "free", lambda _: free)
    monkeypatch.setattr(checks, "gpu", lambda: checks.Check("GPU", Status.WARN, ""))
    check = checks.published()
    assert found in check.found
    assert check.status is (Status.WARN if "no variant" in found else Status.OK)


def test_on_a_gpu_its_memory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "gpu", lambda: checks.Check("GPU", Status.OK, ""))
    monkeypatch.setattr(checks, "gpu_memory", lambda: 80 * 10**9)
    assert "bf16 with 35 slots" in checks.published().found


@pytest.mark.parametrize(("free", "status"), [(16 * MIB, Status.FAIL), (48 * MIB, Status.WARN), (GIB, Status.OK)])
def test_shared_memory_must_hold_the_models_regions(monkeypatch: pytest.MonkeyPatch, free: int, status: Status) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2 * GIB, 0, free))
    assert checks.shared_memory().status is status


def test_a_full_disk_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(GIB, GIB, 0))
    assert checks.disk().status is Status.FAIL


def test_a_read_only_temporary_folder_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.os, "access", lambda path, _: str(path) != tempfile.gettempdir())
    assert (checks.disk().status, checks.disk().mend) == (Status.FAIL, "set TMPDIR to a writable folder")


def test_a_port_in_use_is_a_warning() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        check = checks.gateway_port(port)
    assert (check.status, check.mend) == (Status.WARN, "select another port with personaplex serve --port")
    assert checks.gateway_port(port).status is Status.OK


def test_a_folder_that_is_no_repository_is_reported(tmp_path: Path) -> None:
    check = checks.repository(tmp_path)
    assert check.status is Status.FAIL
    assert check.mend == f"personaplex build CHECKPOINT {tmp_path}"


def test_weights_and_full_slots_must_fit_the_memory(tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, slots = Manifest.load(tiny_models).memory, Manifest.load(tiny_models).slots
    assert memory is not None
    free = memory.weights + slots * memory.slot
    monkeypatch.setattr(HostMemory, "free", lambda _: free)
    assert checks.repository(tiny_models).status is Status.OK
    free -= 1
    check = checks.repository(tiny_models)
    assert (check.status, check.mend) == (
        Status.FAIL,
        f"build with --slots {slots - 1}, or use a machine with more memory",
    )
    free = memory.weights
    assert checks.repository(tiny_models).mend == "build a smaller variant, or use a machine with more memory"


def test_an_unusable_voice_is_a_warning(tiny_models: Path, tmp_path: Path) -> None:
    models = shutil.copytree(tiny_models, tmp_path / "models", ignore=shutil.ignore_patterns("triton"))
    assert "18 voices" in checks.repository(models).found
    (models / "voices" / "NATF0.safetensors").write_bytes(b"")
    check = checks.repository(models)
    assert check.status is Status.WARN
    assert "17 voices" in check.found
    assert "voices/NATF0.safetensors cannot be read" in check.found
    assert check.mend == f"personaplex voice remove {models} NATF0 --force"
