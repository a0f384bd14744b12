"""The doctor's checks: each looks at one thing a run needs, and says what it found and how to mend it."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path

import psutil

from gateway.errors import RepositoryError
from gateway.manifest import Manifest, Memory
from gateway.triton_server import TritonError, TritonInstallation, TritonNotInstalledError, TritonServer
from gateway.voices.registry import VoiceRegistry

PYTHONS = ((3, 11), (3, 13))
MIB = 2**20
GIB = 2**30
# Four models with a region of 4 MiB each, which grow as prompts get longer.
SHM_NEEDED, SHM_ADVISED = 24 * MIB, 64 * MIB
SHM = "/dev/shm"  # noqa: S108 - where Triton puts its regions
MEMORY_NEEDED, MEMORY_ADVISED = GIB, 2 * GIB
DISK_NEEDED, DISK_ADVISED = 100 * MIB, GIB
ONNX_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
INSTALL = "pip install .[cpu], or .[gpu] for CUDA"
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")

CONFIG = 'name: "doctor"\nbackend: "python"\nmax_batch_size: 0\ninstance_group [ { kind: KIND_CPU count: 1 } ]\n'
MODEL = "import numpy, onnxruntime\n\nclass TritonPythonModel:\n    pass\n"


class Status(StrEnum):
    """OK; WARN: it runs, but; FAIL: it does not run."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Check:
    """One line of the doctor's. `mend`: what to do, empty where nothing is to be done."""

    name: str
    status: Status
    found: str
    mend: str = ""


def run_checks(models: Path | None = None, port: int = 8998) -> list[Check]:
    """Everything, in the order in which one would mend it.

    Args:
        models: a built repository to look at too.
        port: what the gateway shall listen on.
    """
    first: list[Callable[[], Check]] = [python, installation, triton, onnx_runtime, kernels, gpu]
    room: list[Callable[[], Check]] = [memory, shared_memory, disk]
    results = [check() for check in first + room]
    results.append(gateway_port(port))
    if models is not None:
        results.append(repository(models))
    return results


def python() -> Check:
    """The running interpreter: the versions this project is tested with and Triton has stubs for."""
    found = f"{platform.python_version()} ({sys.executable})"
    if PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        return Check("Python", Status.OK, found)
    return Check(
        "Python", Status.FAIL, found, "use Python 3.11, 3.12 or 3.13: make clean; make setup PYTHON=python3.12"
    )


def installation() -> Check:
    """Binary, backend, stub and libpython of the embedded server."""
    try:
        found = TritonInstallation.find()
    except TritonNotInstalledError as error:
        return Check("Triton parts", Status.FAIL, *_split(error.message))
    libpython = found.libpython or "where the loader finds it"
    return Check("Triton parts", Status.OK, f"{found.binary}, stub for {found.stub.parent.name}, libpython {libpython}")


def triton() -> Check:
    """The proof of all that: a server is started, with a Python model that imports what ours do."""
    with tempfile.TemporaryDirectory(prefix="personaplex-doctor-") as folder:
        model = Path(folder) / "doctor" / "1" / "model.py"
        model.parent.mkdir(parents=True)
        model.write_text(MODEL)
        (model.parents[1] / "config.pbtxt").write_text(CONFIG)
        server = TritonServer(Path(folder))
        try:
            server.start(timeout=60)
        except TritonNotInstalledError:
            return Check("Triton runs", Status.FAIL, "not tried: a part is missing", "mend the line above first")
        except TritonError as error:
            return Check("Triton runs", Status.FAIL, error.message, "personaplex serve --log-level debug tells more")
        finally:
            server.stop(now=True)
    return Check("Triton runs", Status.OK, "it starts and loads a Python model")


def onnx_runtime() -> Check:
    """The library inside the models, and where it can compute."""
    try:
        import onnxruntime
    except ImportError as error:
        return Check("ONNX Runtime", Status.FAIL, str(error), f"make setup (or {INSTALL})")
    installed = [name for name in ONNX_RUNTIMES if _is_installed(name)]
    if len(installed) > 1:
        found = f"{' and '.join(installed)} are both installed, over one another"
        return Check("ONNX Runtime", Status.FAIL, found, f"pip uninstall {' '.join(installed)}; {INSTALL}")
    return Check("ONNX Runtime", Status.OK, f"{onnxruntime.__version__}, providers: {', '.join(_providers())}")


def kernels() -> Check:
    """Whether the models have their own kernels for products with 4- and 8-bit matrices on the CPU."""
    from model_repository.serving.cpu import missing_for_kernels

    missing = missing_for_kernels()
    if missing is None:
        return Check("CPU kernels", Status.OK, "for products with 4- and 8-bit matrices, on AVX-512 VNNI")
    mend = "a processor with AVX-512 VNNI: without, ONNX Runtime's own are used, half as fast for several callers"
    return Check("CPU kernels", Status.WARN, missing, mend)


def gpu() -> Check:
    """Whether the CUDA driver is there and sees a device, and ONNX Runtime could use it."""
    mend = "for tiny models nothing; for real ones a GPU with NVIDIA's driver (nvidia-smi shows it)"
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Check("GPU", Status.WARN, "no CUDA driver: models run on the CPU", mend)
    count = ctypes.c_int(0)
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return Check("GPU", Status.WARN, "the CUDA driver sees no device: models run on the CPU", mend)
    name = ctypes.create_string_buffer(100)
    cuda.cuDeviceGetName(name, 100, 0)
    found = f"{count.value} × {name.value.decode(errors='replace')}"
    if "CUDA" not in _providers():
        return Check("GPU", Status.WARN, f"{found}, but ONNX Runtime is one without CUDA", "pip install .[gpu]")
    if missing := _missing_cuda_libraries():
        return Check(
            "GPU", Status.FAIL, f"{found}, but {', '.join(missing)} cannot be loaded", "pip install .[gpu] brings them"
        )
    return Check("GPU", Status.OK, found)


def memory() -> Check:
    """What is free, under the container's limit where there is one."""
    return _room(
        "memory", _free_memory(), MEMORY_NEEDED, MEMORY_ADVISED, "end other programs, or raise the container's limit"
    )


def shared_memory() -> Check:
    """The memory through which tensors go between Triton and its Python models."""
    try:
        free = shutil.disk_usage(SHM).free
    except OSError as error:
        return Check(SHM, Status.FAIL, str(error), "mount a tmpfs there")
    return _room(SHM, free, SHM_NEEDED, SHM_ADVISED, "docker run --shm-size=256m (or a larger tmpfs)")


def disk() -> Check:
    """Room where models are built, and where the server keeps its few temporary files."""
    folders = {Path.cwd(), Path(tempfile.gettempdir())}
    unwritable = [str(folder) for folder in folders if not os.access(folder, os.W_OK)]
    if str(tempfile.gettempdir()) in unwritable:
        return Check("disk", Status.FAIL, f"{tempfile.gettempdir()} is not writable", "set TMPDIR to a folder that is")
    free = min(shutil.disk_usage(folder).free for folder in folders)
    return _room("disk", free, DISK_NEEDED, DISK_ADVISED, "make room, or set TMPDIR to a folder that has some")


def gateway_port(port: int) -> Check:
    """Whether the gateway could listen; Triton's own ports are chosen among the free ones."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return Check("port", Status.WARN, f"{port}: {error.strerror}", "personaplex serve --port with another one")
    return Check("port", Status.OK, f"{port} is free")


def repository(models: Path) -> Check:
    """Whether the folder can be served, and the memory holds its weights and what all its slots will fill."""
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
            return Check("models", Status.FAIL, f"{found}, for CUDA, which is not here", "build with --device cpu")
    elif manifest.memory is not None:
        return _fits(found, manifest.slots, manifest.memory)
    return Check("models", Status.OK, found)


def _fits(found: str, slots: int, memory: Memory) -> Check:
    """Slots take their memory bit by bit, as conversations grow: too little of it shows in the middle of calls."""
    free = _free_memory()
    needed = memory.weights + slots * memory.slot
    found = f"{found}; weights {_size(memory.weights)}, each slot {_size(memory.slot)}"
    if needed <= free:
        return Check("models", Status.OK, found)
    fitting = (free - memory.weights) // memory.slot
    smaller = f"build with --slots {fitting}" if fitting > 0 else "build a smaller variant"
    found = f"{found}: {_size(needed)}, and {_size(free)} are free"
    return Check("models", Status.FAIL, found, f"{smaller}, or take a machine with more memory")


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _providers() -> list[str]:
    """Where ONNX Runtime can compute, by short name; nowhere without it."""
    try:
        import onnxruntime
    except ImportError:
        return []
    return [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]


def _missing_cuda_libraries() -> list[str]:
    """Those that ONNX Runtime's CUDA provider was linked with or, cuDNN, needs for convolutions."""
    import onnxruntime
    from onnxruntime.capi import build_and_package_info

    # It prints what it does not find, and what we print may be JSON.
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


def _free_memory() -> int:
    """Bytes that could be had, under the container's limit where there is one."""
    free = int(psutil.virtual_memory().available)
    try:
        return min(free, int(CGROUP_LIMIT.read_text()))
    except (OSError, ValueError):
        return free


def _room(name: str, free: int, needed: int, advised: int, mend: str) -> Check:
    status = Status.FAIL if free < needed else Status.WARN if free < advised else Status.OK
    return Check(name, status, f"{_size(free)} free", "" if status is Status.OK else mend)


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.0f} MiB"


def _split(message: str) -> tuple[str, str]:
    """What is missing and how to mend it, from an error's `what: how`."""
    what, _, how = message.partition(": ")
    return what, how
