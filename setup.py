"""Builds the kernels for ONNX Runtime, with a compiler that comes as a package: the machine needs none of its own.

Everything else that is to be said of this project stands in pyproject.toml.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

NATIVE = "model_repository/serving/native"
TARGET = "x86_64-linux-gnu.2.28"
"""Runs with the C library of Debian 10, Ubuntu 20.04 and later."""


class BuildLibrary(build_ext):
    """A shared library that ONNX Runtime loads: no Python module, so its name says nothing of a version of Python."""

    def get_ext_filename(self, fullname: str) -> str:
        return f"{fullname.replace('.', '/')}.so"

    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name))
        library.parent.mkdir(parents=True, exist_ok=True)
        caches = {f"ZIG_{which}_CACHE_DIR": str(Path(self.build_temp).resolve()) for which in ("LOCAL", "GLOBAL")}
        compiler = [sys.executable, "-m", "ziglang", "cc", "-target", TARGET, "-shared", "-fPIC"]
        command = [*compiler, *ext.extra_compile_args, "-o", str(library), *ext.sources]
        subprocess.run(command, check=True, env={**os.environ, **caches})  # noqa: S603


products = Extension(
    f"{NATIVE.replace('/', '.')}.block_products",
    [f"{NATIVE}/block_products.c"],
    depends=[f"{NATIVE}/onnxruntime_abi.h"],
    extra_compile_args=[
        *("-std=c11", "-O3", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden"),
        # serving/cpu.py looks whether the processor has these.
        *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni"),
    ],
)
on_x86_linux = platform.machine() == "x86_64" and sys.platform == "linux"
setup(ext_modules=[products] if on_x86_linux else [], cmdclass={"build_ext": BuildLibrary})
