"""The memory of a CUDA GPU.

ONNX Runtime binds device memory by address but neither tells how much is free nor copies parts of it; CUDA's own
runtime library, which it brings into the process, does both. `cuda-bindings` (a wheel of 8.4 MB) would link a second
copy of that library, which `make check-cuda` could not stand in for; nine functions are called here.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from model_repository.serving.row_request import Array

FUSED_MATMULS = "ORT_FPA_INTB_GEMM"
"""Environment variable of ONNX Runtime: 1 multiplies with quantized matrices as they are, 0 unpacks them first."""

OPERATORS = Path(__file__).parent / "native" / "int8_kv_attention.so"
"""Attention to int8 keys and values. `compile_cuda.sh` beside its source makes it, where there is nvcc."""

_HOST_TO_DEVICE, _DEVICE_TO_HOST, _ON_DEVICE = 1, 2, 3
"""cudaMemcpyKind."""


class DeviceError(RuntimeError):
    """The device is not there, or something on it failed."""


class CudaMemory:
    """The memory of a CUDA GPU, among those that CUDA_VISIBLE_DEVICES leaves visible.

    `kind` and `index` are what ONNX Runtime calls the device. `operators`: our library of operators, if it was built.
    """

    kind = "cuda"

    def __init__(self, index: int = 0, capture: bool = True, operators: Path = OPERATORS) -> None:
        """`capture`: whether sessions record their runs. Raises `DeviceError` if this installation has no CUDA."""
        self.index = index
        self.operators = operators if operators.exists() else None
        self._capture = capture
        available = ort.get_available_providers()
        if "CUDAExecutionProvider" not in available:
            raise DeviceError(
                f"expected onnxruntime with CUDA, found one with {', '.join(available)}: "
                "pip install personaplex-triton[gpu]"
            )
        os.environ.setdefault(FUSED_MATMULS, "1")
        self._runtime = _cuda_runtime()
        self._call("cudaSetDevice", ctypes.c_int(index))

    @property
    def providers(self) -> Sequence[tuple[str, Mapping[str, str]]]:
        """Execution providers of a session there: nothing rounded to TF32, and no more memory taken than asked for."""
        options = {
            "device_id": str(self.index),
            "enable_cuda_graph": str(int(self._capture)),
            "use_tf32": "0",
            "arena_extend_strategy": "kSameAsRequested",
        }
        return [("CUDAExecutionProvider", options)]

    def free(self) -> int:
        """Bytes that could be allocated."""
        return self._memory()[0]

    def total(self) -> int:
        """Bytes in all, free or not."""
        return self._memory()[1]

    def _memory(self) -> tuple[int, int]:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def allocate(self, size: int) -> int:
        """The address of `size` zero bytes. Raises `DeviceError`."""
        pointer = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(size))
        address = pointer.value or 0
        self.clear(address, size)
        return address

    def release(self, address: int) -> None:
        """Give back what `allocate` gave."""
        self._call("cudaFree", ctypes.c_void_p(address))

    def clear(self, address: int, size: int) -> None:
        """Zero `size` bytes."""
        self._call("cudaMemset", ctypes.c_void_p(address), ctypes.c_int(0), ctypes.c_size_t(size))

    def pinned(self, shape: tuple[int, ...], dtype: type) -> Array:
        """A zero array in host memory that the device copies from and to by itself. It is never freed: a session's
        arrays live as long as the process.
        """
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        pointer = ctypes.c_void_p()
        self._call("cudaMallocHost", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        bytes_there = (ctypes.c_uint8 * size).from_address(pointer.value or 0)
        array: Array = np.ctypeslib.as_array(bytes_there).view(dtype).reshape(shape)
        array[...] = 0
        return array

    def upload(self, rows: Array, address: int) -> None:
        """Write contiguous `rows`, which must not change until `synchronize`."""
        self._copy(address, rows.ctypes.data, rows.nbytes, _HOST_TO_DEVICE)

    def download(self, rows: Array, address: int) -> None:
        """Read into contiguous `rows`, which are valid after `synchronize`."""
        self._copy(rows.ctypes.data, address, rows.nbytes, _DEVICE_TO_HOST)

    def copy(self, source: int, target: int, size: int) -> None:
        """Copy `size` bytes on the device."""
        self._copy(target, source, size, _ON_DEVICE)

    def synchronize(self) -> None:
        """Wait until what was uploaded, downloaded, copied and cleared is there."""
        # Sessions have a stream of their own, which does not wait for the default one.
        self._call("cudaStreamSynchronize", ctypes.c_void_p(0))

    def _copy(self, to: int, source: int, size: int, kind: int) -> None:
        pointers = ctypes.c_void_p(to), ctypes.c_void_p(source)
        self._call("cudaMemcpyAsync", *pointers, ctypes.c_size_t(size), ctypes.c_int(kind), ctypes.c_void_p(0))

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._runtime, name)(*arguments)
        if code:
            describe = self._runtime.cudaGetErrorString
            describe.restype = ctypes.c_char_p
            raise DeviceError(f"GPU {self.index}: {name}: {describe(ctypes.c_int(code)).decode(errors='replace')}")


def row_bytes(array: Array) -> int:
    """Of one entry of the first axis."""
    return int(np.prod(array.shape[1:], dtype=np.int64)) * array.itemsize


def _cuda_runtime() -> ctypes.CDLL:
    """libcudart of the version ONNX Runtime was built for: of the system, or from NVIDIA's wheels."""
    from onnxruntime.capi import build_and_package_info

    # It prints what it does not find in wheels, which the system may have.
    with redirect_stdout(sys.stderr):
        ort.preload_dlls()
    name = f"libcudart.so.{build_and_package_info.cuda_version.partition('.')[0]}"
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise DeviceError(f"expected {name} of CUDA {build_and_package_info.cuda_version}, found {error}") from None
