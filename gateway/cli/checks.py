"""The checks of `personaplex doctor`: each tests one requirement, and returns what it found and how to fix it."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path

from gateway.cli.console import INSTALL
from gateway.cli.published import ON_CPU, ON_CUDA
from gateway.errors import RepositoryError
from gateway.manifest import Manifest, Memory
from gateway.triton_server import TritonError, TritonInstallation, TritonNotInstalledError, TritonServer
from gateway.voices.registry import VoiceRegistry
from model_repository.serving.host import HostMemory

PYTHONS = ((3, 11), (3, 13))
MIB = 2**20
GIB = 2**30
# Four models with a region of 4 MiB each, which grows with the length of prompts.
SHM_NEEDED, SHM_ADVISED = 24 * MIB, 64 * MIB
SHM = "/dev/shm"  # noqa: S108 - where Triton puts its regions
MEMORY_NEEDED, MEMORY_ADVISED = GIB, 2 * GIB
DISK_NEEDED, DISK_ADVISED = 100 * MIB, GIB
ONNX_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")

CONFIG = 'name: "doctor"\nbackend: "python"\nmax_batch_size: 0\ninstance_group [ { kind: KIND_CPU count: 1 } ]\n'
MODEL = "import numpy, onnxruntime\n\nclass TritonPythonModel:\n    pass\n"


class Status(StrEnum):
    """OK: met; WARN: the server runs, with a limitation; FAIL: it does not run."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Check:
    """The result of a check. `mend`: how to fix it, empty if it is OK."""

    name: str
    status: Status
    found: str
    mend: str = ""


def run_checks(models: Path | None = None, port: int = 8998) -> list[Check]:
    """Run all checks, in the order in which to fix them.

    Args:
        models: a built repository to check too.
        port: port of the gateway.
    """
    first: list[Callable[[], Check]] = [python, installation, triton, onnx_runtime, kernels, gpu]
    space: list[Callable[[], Check]] = [memory, shared_memory, disk]
    results = [check() for check in first + space]
    results.append(gateway_port(port))
    results.append(published() if models is None else repository(models))
    return results


def python() -> Check:
    """Check the version of Python: this project is tested with it and Triton has a stub for it."""
    found = f"{platform.python_version()} ({sys.executable})"
    if PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        return Check("Python", Status.OK, found)
    return Check(
        "Python", Status.FAIL, found, "use Python 3.11, 3.12 or 3.13: make clean; make setup PYTHON=python3.12"
    )


def installation() -> Check:
    """Find the binary, backend, stub and libpython of the embedded Triton."""
    try:
        found = TritonInstallation.find()
    except TritonNotInstalledError as error:
        return Check("Triton parts", Status.FAIL, *_split(error.message))
    libpython = found.libpython or "on the loader's path"
    return Check("Triton parts", Status.OK, f"{found.binary}, stub for {found.stub.parent.name}, libpython {libpython}")


def triton() -> Check:
    """Start Triton with a Python model that imports the libraries of the served models."""
    with tempfile.TemporaryDirectory(prefix="personaplex-doctor-") as folder:
        model = Path(folder) / "doctor" / "1" / "model.py"
        model.parent.mkdir(parents=True)
        model.write_text(MODEL)
        (model.parents[1] / "config.pbtxt").write_text(CONFIG)
        server = TritonServer(Path(folder))
        try:
            server.start(timeout=60)
        except TritonNotInstalledError:
            return Check("Triton runs", Status.FAIL, "not tried: a part is missing", "fix the line above first")
        except TritonError as error:
            return Check(
                "Triton runs", Status.FAIL, error.message, "run personaplex serve --log-level debug for details"
            )
        finally:
            server.stop(now=True)
    return Check("Triton runs", Status.OK, "starts and loads a Python model")


def onnx_runtime() -> Check:
    """Check the installed ONNX Runtime and list its execution providers."""
    try:
        import onnxruntime
    except ImportError as error:
        return Check("ONNX Runtime", Status.FAIL, str(error), f"make setup (or {INSTALL})")
    installed = [name for name in ONNX_RUNTIMES if _is_installed(name)]
    if len(installed) > 1:
        found = f"{' and '.join(installed)} are both installed and overwrite each other"
        return Check("ONNX Runtime", Status.FAIL, found, f"pip uninstall {' '.join(installed)}; {INSTALL}")
    return Check("ONNX Runtime", Status.OK, f"{onnxruntime.__version__}, providers: {', '.join(_providers())}")


def kernels() -> Check:
    """Check that the CPU kernels were built and the processor supports them."""
    try:
        from model_repository.serving.cpu import missing_for_kernels
    except ImportError:
        return Check("CPU kernels", Status.WARN, "not tried: ONNX Runtime is missing", "fix the line above first")
    missing = missing_for_kernels()
    if missing is None:
        return Check("CPU kernels", Status.OK, "for 4- and 8-bit matmuls and for Mimi, with AVX-512 VNNI")
    mend = "use a processor with AVX-512 VNNI; ONNX Runtime's own kernels are half as fast for several conversations"
    return Check("CPU kernels", Status.WARN, missing, mend)


def gpu() -> Check:
    """Check that the CUDA driver finds a device and ONNX Runtime can use it."""
    mend = "not needed for tiny models; for others install a GPU with NVIDIA's driver (nvidia-smi lists it)"
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Check("GPU", Status.WARN, "no CUDA driver; models run on the CPU", mend)
    count = ctypes.c_int(0)
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return Check("GPU", Status.WARN, "the CUDA driver finds no device; models run on the CPU", mend)
    name = ctypes.create_string_buffer(100)
    cuda.cuDeviceGetName(name, 100, 0)
    found = f"{count.value} × {name.value.decode(errors='replace')}"
    if "CUDA" not in _providers():
        return Check("GPU", Status.WARN, f"{found}, but this ONNX Runtime has no CUDA", "pip install .[gpu]")
    if missing := _missing_cuda_libraries():
        return Check("GPU", Status.FAIL, f"{found}, but {', '.join(missing)} cannot be loaded", "pip install .[gpu]")
    return Check("GPU", Status.OK, f"{found}, {_int8_kv()}")


def _int8_kv() -> str:
    """Whether our operator for GPUs was built."""
    from model_repository.serving.device import OPERATORS

    return f"{'with' if OPERATORS.exists() else 'without'} the operator for int8 keys and values"


def memory() -> Check:
    """Check the free memory, within the container's limit if there is one."""
    return _check_space(
        "memory",
        HostMemory().free(),
        MEMORY_NEEDED,
        MEMORY_ADVISED,
        "end other programs or raise the container's limit",
    )


def shared_memory() -> Check:
    """Check the shared memory that passes tensors between Triton and its Python models."""
    try:
        free = shutil.disk_usage(SHM).free
    except OSError as error:
        return Check(SHM, Status.FAIL, str(error), "mount a tmpfs there")
    return _check_space(SHM, free, SHM_NEEDED, SHM_ADVISED, "docker run --shm-size=256m (or a larger tmpfs)")


def disk() -> Check:
    """Check the free disk space of the working folder and of the folder for temporary files."""
    folders = {Path.cwd(), Path(tempfile.gettempdir())}
    unwritable = [str(folder) for folder in folders if not os.access(folder, os.W_OK)]
    if str(tempfile.gettempdir()) in unwritable:
        return Check("disk", Status.FAIL, f"{tempfile.gettempdir()} is not writable", "set TMPDIR to a writable folder")
    free = min(shutil.disk_usage(folder).free for folder in folders)
    return _check_space("disk", free, DISK_NEEDED, DISK_ADVISED, "free disk space or set TMPDIR to another folder")


def gateway_port(port: int) -> Check:
    """Check that the gateway's port is free. Triton takes any free ports."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return Check(
                "port", Status.WARN, f"{port}: {error.strerror}", "select another port with personaplex serve --port"
            )
    return Check("port", Status.OK, f"{port} is free")


@dataclass(frozen=True)
class Fit:
    """Slots of each variant of the published 7B that fit. free: bytes of the GPU, or of the machine without one."""

    on_gpu: bool
    free: int
    slots: dict[str, int]


def fit_published() -> Fit | None:
    """Compute how many slots of the published 7B fit on this machine. None: ONNX Runtime is missing."""
    try:
        from model_repository.serving.memory import (
            DEVICE_WORKSPACE_BYTES,
            HOST_WORKSPACE_BYTES,
            WORKSPACE_SHARE,
            MemoryEstimate,
        )
    except ImportError:
        return None
    device = gpu_memory() if gpu().status is Status.OK else None
    if device is None:
        free, sizes, workspace, prefixes = HostMemory().free(), ON_CPU, HOST_WORKSPACE_BYTES, 0
    else:
        free, sizes, workspace, prefixes = device, ON_CUDA, DEVICE_WORKSPACE_BYTES, 1

    def needs(memory: Memory) -> MemoryEstimate:
        """Each of the four models has a process with a workspace; prompts are kept in a window of their own."""
        extra = prefixes * memory.slot + round(WORKSPACE_SHARE * memory.weights)
        return MemoryEstimate(memory.weights, memory.slot, 4 * workspace + extra)

    slots = {name: needs(memory).fitting(free) for name, memory in sizes.items()}
    return Fit(device is not None, free, {name: count for name, count in slots.items() if count > 0})


def published() -> Check:
    """List the variants of the published 7B that fit on this machine, with the number of slots of each."""
    fit = fit_published()
    if fit is None:
        return Check("PersonaPlex 7B", Status.WARN, "not computed: ONNX Runtime is missing", "fix the line above first")
    where = f"{_size(fit.free)} {'on the GPU' if fit.on_gpu else 'of memory'}"
    if not fit.slots:
        least = (ON_CUDA if fit.on_gpu else ON_CPU)["int4"]
        needed = _size(least.weights + least.slot)
        return Check("PersonaPlex 7B", Status.WARN, f"no variant fits {where}", f"int4 with 1 slot needs {needed}")
    fitting = ", ".join(f"{name} with {count} slots" for name, count in fit.slots.items())
    slow = "" if fit.on_gpu else "; on a CPU it is far from real time (docs/benchmarks.md)"
    return Check("PersonaPlex 7B", Status.OK, f"in {where}: {fitting}{slow}")


def recommendation(checks: Sequence[Check], models: Path | None, fit: Fit | None) -> str:
    """Return what to do next.

    Args:
        checks: all results.
        models: the built repository that was checked too.
        fit: what fits of the published model.
    """
    for check in checks:
        if check.status is Status.FAIL:
            return f"Fix {check.name} first: {check.mend}"
    if models is not None:
        return f"Serve the models: personaplex serve {models}"
    for variant in ("bf16", "int8", "int4"):
        if fit is not None and fit.on_gpu and (slots := fit.slots.get(variant)):
            options = f"--device cuda --variant {variant} --slots {slots}"
            return f"Build the published model for this GPU: personaplex build personaplex-7b-v1 models {options}"
    return "Try the small speaking model: personaplex demo. For the 7B in real time use a GPU (docs/gpu.md)"


def gpu_memory() -> int | None:
    """Return the bytes of the first GPU; None if there is none."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    size, device = ctypes.c_size_t(0), ctypes.c_int(0)
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
        return None
    return None if cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device) else size.value


def repository(models: Path) -> Check:
    """Check that the folder is a built repository and its weights and slots fit in memory."""
    try:
        manifest = Manifest.load(models)
    except RepositoryError as error:
        return Check("models", Status.FAIL, error.message, f"personaplex build CHECKPOINT {models}")
    voices = VoiceRegistry(manifest)
    usable, broken = voices.available(), voices.broken()
    found = f"{models}: {manifest.variant}, {manifest.slots} slots, {len(usable)} voices"
    if broken:
        mend = "; ".join(f"personaplex voice remove {models} {voice.name} --force" for voice in broken)
        return Check("models", Status.WARN, f"{found}; {'; '.join(voice.problem for voice in broken)}", mend)
    if manifest.device == "cuda":
        if "CUDA" not in _providers():
            return Check(
                "models", Status.FAIL, f"{found}, built for CUDA, which is not available", "build with --device cpu"
            )
    elif manifest.memory is not None:
        return _fits(found, manifest.slots, manifest.memory)
    return Check("models", Status.OK, found)


def _fits(found: str, slots: int, memory: Memory) -> Check:
    """Compare needed and free memory. Slots fill theirs gradually: a lack of memory shows during conversations only."""
    free = HostMemory().free()
    needed = memory.weights + slots * memory.slot
    found = f"{found}; weights {_size(memory.weights)}, each slot {_size(memory.slot)}"
    if needed <= free:
        return Check("models", Status.OK, found)
    fitting = (free - memory.weights) // memory.slot
    smaller = f"build with --slots {fitting}" if fitting > 0 else "build a smaller variant"
    found = f"{found}: needs {_size(needed)}, {_size(free)} are free"
    return Check("models", Status.FAIL, found, f"{smaller}, or use a machine with more memory")


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _providers() -> list[str]:
    """Return the short names of ONNX Runtime's execution providers; none if it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return []
    return [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]


def _missing_cuda_libraries() -> list[str]:
    """Return the libraries of ONNX Runtime's CUDA provider that cannot be loaded."""
    import onnxruntime
    from onnxruntime.capi import build_and_package_info

    # It prints to stdout, where --json prints its result.
    with redirect_stdout(sys.stderr):
        onnxruntime.preload_dlls()
    major = build_and_package_info.cuda_version.partition(".")[0]
    of_version = [f"{name}.so.{major}" for name in ("libcudart", "libcublas", "libcublasLt")]
    return [name for name in (*of_version, "libcurand.so.10", "libcudnn.so.9") if not _loads(name)]


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _check_space(name: str, free: int, needed: int, advised: int, mend: str) -> Check:
    status = Status.FAIL if free < needed else Status.WARN if free < advised else Status.OK
    return Check(name, status, f"{_size(free)} free", "" if status is Status.OK else mend)


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.0f} MiB"


def _split(message: str) -> tuple[str, str]:
    """Split an error message `what is missing: how to fix it`."""
    what, _, how = message.partition(": ")
    return what, how
