"""The memory of a GPU, with CUDA's runtime library replaced by one that works on the host's memory."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from model_repository.serving import device
from model_repository.serving.device import CudaMemory, DeviceError
from model_repository.serving.execution_target import device_of


class Runtime:
    """The functions of libcudart that are used, by the signatures of its documentation; 0 is success."""

    def __init__(self) -> None:
        self.blocks: dict[int, Any] = {}
        self.pinned: list[Any] = []
        self.devices, self.size = 2, 1000

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} is not to be called")

    def cudaSetDevice(self, index: ctypes.c_int) -> int:  # noqa: N802
        return 0 if index.value < self.devices else 101

    def cudaMemGetInfo(self, free: Any, total: Any) -> int:  # noqa: N802
        free._obj.value, total._obj.value = self.size - sum(map(len, self.blocks.values())), self.size
        return 0

    def cudaMalloc(self, pointer: Any, size: ctypes.c_size_t) -> int:  # noqa: N802
        if size.value > self.size - sum(map(len, self.blocks.values())):
            return 2
        block = ctypes.create_string_buffer(b"\xff" * size.value, size.value)
        pointer._obj.value = ctypes.addressof(block)
        self.blocks[pointer._obj.value] = block
        return 0

    def cudaFree(self, address: ctypes.c_void_p) -> int:  # noqa: N802
        del self.blocks[address.value]
        return 0

    def cudaMemset(self, address: Any, value: Any, size: Any) -> int:  # noqa: N802
        ctypes.memset(address.value, value.value, size.value)
        return 0

    def cudaMallocHost(self, pointer: Any, size: ctypes.c_size_t) -> int:  # noqa: N802
        block = ctypes.create_string_buffer(b"\xff" * size.value, size.value)
        pointer._obj.value = ctypes.addressof(block)
        self.pinned.append(block)
        return 0

    def cudaMemcpyAsync(self, to: Any, source: Any, size: Any, _kind: Any, stream: Any) -> int:  # noqa: N802
        assert not stream.value
        ctypes.memmove(to.value, source.value, size.value)
        return 0

    def cudaStreamSynchronize(self, stream: ctypes.c_void_p) -> int:  # noqa: N802
        assert not stream.value
        return 0

    def cudaGetErrorString(self, code: ctypes.c_int) -> bytes:  # noqa: N802
        return {2: b"out of memory", 101: b"invalid device ordinal"}[code.value]


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    runtime = Runtime()
    describe = Runtime.cudaGetErrorString
    # Functions of a library have a `restype` to set.
    runtime.cudaGetErrorString = lambda code: describe(runtime, code)  # type: ignore[method-assign]
    monkeypatch.setattr(device, "_cuda_runtime", lambda: runtime)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    return runtime


def test_memory_is_zero_at_first_and_counted(runtime: Runtime):
    memory = CudaMemory()
    address = memory.allocate(300)
    assert (memory.free(), memory.total()) == (700, 1000)
    there = np.ones(300, np.uint8)
    memory.download(there, address)
    assert not there.any()
    memory.release(address)
    assert memory.free() == 1000


def test_rows_go_to_the_device_along_it_and_back(runtime: Runtime):
    memory = CudaMemory()
    first, second = memory.allocate(64), memory.allocate(64)
    rows = memory.pinned((4, 3), np.float16)
    assert not rows.any()
    assert rows.ctypes.data in [ctypes.addressof(block) for block in runtime.pinned]
    rows[:] = np.arange(12).reshape(4, 3)
    memory.upload(rows, first + 8)
    memory.copy(first + 8 + 6, second, 12)
    memory.synchronize()
    back = np.empty((2, 3), np.float16)
    memory.download(back, second)
    np.testing.assert_array_equal(back, rows[1:3])
    memory.clear(first, 14)
    memory.download(back, first + 8)
    assert back.tolist() == [[0, 0, 0], [3, 4, 5]]


def test_what_cuda_says_is_told(runtime: Runtime):
    with pytest.raises(DeviceError, match="GPU 0: cudaMalloc: out of memory"):
        CudaMemory().allocate(1001)
    with pytest.raises(DeviceError, match="GPU 7: cudaSetDevice: invalid device ordinal"):
        CudaMemory(7)


def test_sessions_are_opened_there_with_graphs_captured(runtime: Runtime):
    ((name, options),) = CudaMemory(1).providers
    assert name == "CUDAExecutionProvider"
    assert (options["device_id"], options["enable_cuda_graph"], options["use_tf32"]) == ("1", "1", "0")
    ((_, options),) = CudaMemory(capture=False).providers
    assert options["enable_cuda_graph"] == "0"


def test_an_onnx_runtime_without_cuda_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(
        DeviceError, match=r"found one with CPUExecutionProvider: pip install personaplex-triton\[gpu\]"
    ):
        CudaMemory()


def test_a_provider_is_a_device(runtime: Runtime):
    assert device_of("cpu") is None
    memory = device_of("cuda")
    assert isinstance(memory, CudaMemory)
    assert memory.index == 0
    with pytest.raises(ValueError, match="expected cpu or cuda, got 'tpu'"):
        device_of("tpu")
