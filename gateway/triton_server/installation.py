"""Find the parts of the embedded Triton server (nvidia-pytriton wheel) and the libpython that they need."""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import platform
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.triton_server.errors import TritonNotInstalledError

WHEEL = "nvidia-pytriton==0.7.0"

_TUNABLES = "GLIBC_TUNABLES"
_HUGE_PAGES = "glibc.malloc.hugetlb"


@dataclass(frozen=True)
class TritonInstallation:
    """Paths of the parts.

    Attributes:
        binary: the `tritonserver` executable.
        python_backend: folder of Triton's Python backend (`libtriton_python.so`, `triton_python_backend_utils.py`).
        stub: the `triton_python_backend_stub` built for the running Python's minor version.
        libraries: folder of the wheel's shared libraries.
        libpython: folder of `libpython3.X.so.1.0`; None if the loader finds it, or the wheel contains it.
    """

    binary: Path
    python_backend: Path
    stub: Path
    libraries: Path
    libpython: Path | None

    @classmethod
    def find(cls) -> TritonInstallation:
        """Find the parts for the running Python.

        Raises:
            TritonNotInstalledError: a part is missing.
        """
        wheel = _wheel_folder()
        server = wheel / "tritonserver"
        minor = f"{sys.version_info.major}.{sys.version_info.minor}"
        binary = _existing(server / "bin" / "tritonserver", "the tritonserver binary")
        if not os.access(binary, os.X_OK):
            raise TritonNotInstalledError(f"{binary} is not executable: chmod +x {binary}")
        backend = server / "backends" / "python"
        _existing(backend / "libtriton_python.so", "Triton's Python backend")
        stubs = server / "python_backend_stubs"
        stub = stubs / minor / "triton_python_backend_stub"
        if not stub.is_file():
            known = ", ".join(sorted((p.name for p in stubs.glob("3.*")), key=lambda name: int(name.split(".")[1])))
            raise TritonNotInstalledError(
                f"Triton's Python backend has no stub for Python {minor} (it has {known or 'none'}): "
                "use another version of Python"
            )
        libraries = wheel.parent / "nvidia_pytriton.libs"
        if not libraries.is_dir():
            raise _broken("the shared libraries of Triton", libraries)
        return cls(binary, backend, stub, libraries, _libpython_folder(libraries))

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """Return `base` with the library and package paths of tritonserver and its Python stubs, and with huge pages
        for the weights of the models.
        """
        libraries = [self.libraries] if self.libpython is None else [self.libpython, self.libraries]
        return {
            **base,
            "LD_LIBRARY_PATH": _joined(libraries, base.get("LD_LIBRARY_PATH")),
            # The stub's interpreter ignores PYTHONPATH and PYTHONHOME. It uses the environment, virtual or not, of the
            # first python3 on PATH.
            "PATH": _joined([Path(sys.executable).parent], base.get("PATH", os.defpath)),
            **huge_pages(base),
        }


def huge_pages(base: Mapping[str, str]) -> dict[str, str]:
    """Return the variable that makes `malloc` of glibc request huge pages, unless `base` configures them.

    A step reads all weights once; in a virtual machine, each page costs a walk through the page tables of host and
    guest. The variable has no effect if transparent huge pages are off, or with glibc before 2.35.
    """
    tunables = [tunable for tunable in base.get(_TUNABLES, "").split(":") if tunable]
    if not any(tunable.startswith(f"{_HUGE_PAGES}=") for tunable in tunables):
        tunables.append(f"{_HUGE_PAGES}=1")
    return {_TUNABLES: ":".join(tunables)}


def _wheel_folder() -> Path:
    # find_spec does not import the package, which would fail without its dependencies.
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise TritonNotInstalledError(
            f"the embedded Triton server is not installed: pip install --no-deps {WHEEL}"
            f"{'' if platform.machine() in ('x86_64', 'aarch64') else f' (no wheel for {platform.machine()})'}"
            ", or use --triton HOST:PORT"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _existing(path: Path, what: str) -> Path:
    if not path.is_file():
        raise _broken(what, path)
    return path


def _broken(what: str, path: Path) -> TritonNotInstalledError:
    return TritonNotInstalledError(f"{what} is missing ({path}): pip install --no-deps --force-reinstall {WHEEL}")


def _libpython_folder(wheel_libraries: Path) -> Path | None:
    """Return the folder of libpython for the running Python; None if the loader finds it without a path."""
    minor = sys.version_info.minor
    if any(wheel_libraries.glob(f"libpython3-*.{minor}.so.1.0")):
        return None
    name = f"libpython3.{minor}.so.1.0"
    multiarch = sysconfig.get_config_var("MULTIARCH")
    candidates = [
        sysconfig.get_config_var("LIBDIR"),
        f"{sys.base_prefix}/lib",
        *os.environ.get("LD_LIBRARY_PATH", "").split(":"),
        f"/usr/lib/{multiarch}" if multiarch else None,
    ]
    for folder in candidates:
        if folder and (Path(folder) / name).is_file():
            return Path(folder)
    if ctypes.util.find_library(f"python3.{minor}") == name:
        return None
    raise TritonNotInstalledError(
        f"{name} cannot be loaded, and Triton's Python backend needs it: apt-get install libpython3.{minor} "
        "(for pyenv, build with PYTHON_CONFIGURE_OPTS=--enable-shared)"
    )


def _joined(folders: Iterable[Path], rest: str | None) -> str:
    return ":".join([*map(str, folders), *([rest] if rest else [])])
