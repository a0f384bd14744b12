"""Build the CPU kernels for ONNX Runtime with a compiler that is installed as a package.

pyproject.toml has everything else.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

NATIVE = "model_repository/serving/native"
TARGET = "x86_64-linux-gnu.2.28"
"""Runs with the C library of Debian 10, Ubuntu 20.04 and later."""
PLATFORM = "manylinux_2_28_x86_64"
"""The same in the name of a wheel."""


class BuildLibrary(build_ext):
    """Build a shared library that ONNX Runtime loads. It is no Python module: its name has no version of Python."""

    def get_ext_filename(self, fullname: str) -> str:
        return f"{fullname.replace('.', '/')}.so"

    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        caches = {f"ZIG_{which}_CACHE_DIR": str(Path(self.build_temp).resolve()) for which in ("LOCAL", "GLOBAL")}
        compiler = [sys.executable, "-m", "ziglang", "cc", "-target", TARGET, "-shared", "-fPIC"]
        command = [*compiler, *ext.extra_compile_args, "-o", str(library), *ext.sources]
        subprocess.run(command, check=True, env={**os.environ, **caches})  # noqa: S603


class Wheel(bdist_wheel):
    """Build one wheel for every version of Python: the library does not use Python's ABI."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", PLATFORM


kernels = Extension(
    f"{NATIVE.replace('/', '.')}.kernels",
    [f"{NATIVE}/{name}.c" for name in ("operators", "block_products", "elu_convolution")],
    depends=[f"{NATIVE}/{name}.h" for name in ("operators", "onnxruntime_abi")],
    extra_compile_args=[
        *("-std=c11", "-O3", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden"),
        # serving/cpu.py looks whether the processor has these.
        *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"),
    ],
)
on_x86_linux = platform.machine() == "x86_64" and sys.platform == "linux"
if on_x86_linux:
    setup(ext_modules=[kernels], cmdclass={"build_ext": BuildLibrary, "bdist_wheel": Wheel})
else:
    setup()
