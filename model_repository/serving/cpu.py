"""ONNX Runtime sessions on the CPU: their threads, their kernels, and the memory of their weights.

Graphs name products with block-quantized matrices by an operator of our own. Where the processor can run the kernels
that lie beside this module, in `native`, a session gets them; elsewhere it does what the graph says instead.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnxruntime as ort

from model_repository.processors import processors

KERNELS = Path(__file__).parent / "native" / "kernels.so"
"""Made when this package is installed, on x86-64; see setup.py."""

KERNELS_NEED = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"})
"""Of the processor: Intel's of 2019 and later servers, AMD's from Zen 4."""

WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
"""Option of a session whose graph does not come from a file: where the file of its weights lies."""

_NO_FLASH = "ORT_GQA_DISABLE_FLASH_ATTENTION"
_OF_8_BIT_CACHES = b"k_quant_type"
"""An attribute of an attention whose cache is quantized; nothing else in a graph has it."""

_SMALL_MODEL_BYTES = 64 << 20
"""Weights below this fit the caches: threads would cost more than they bring."""


def open_on_cpu(model: Path, graph: bytes | None = None) -> ort.InferenceSession:
    """A session of the file `model`, or of another `graph` with its weights."""
    options = session_options(model)
    options.add_session_config_entry(WEIGHTS_FOLDER, str(model.parent))
    with attention_kernels(model):
        session = ort.InferenceSession(graph or str(model), options, providers=["CPUExecutionProvider"])
    forget_pages(weights_of(model))
    return session


def session_options(model: Path) -> ort.SessionOptions:
    """Options for the file `model`: one thread for a small one, else one for each processor.

    PERSONAPLEX_INTRA_OP_THREADS overrides the count. Threads spin during a run only: four models share the machine,
    each in a process of its own, and a pool that spins on would take the cores from the stage that has work.
    """
    options = ort.SessionOptions()
    weights = weights_of(model)
    size = weights.stat().st_size if weights.exists() else 0
    threads = int(os.environ.get("PERSONAPLEX_INTRA_OP_THREADS", "0"))
    options.intra_op_num_threads = threads or (1 if size < _SMALL_MODEL_BYTES else processors())
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if missing_for_kernels() is None:
        options.register_custom_ops_library(str(KERNELS))
    return options


def missing_for_kernels() -> str | None:
    """Why sessions do without our kernels; None if they have them. PERSONAPLEX_CPU_KERNELS=0 turns them off."""
    if os.environ.get("PERSONAPLEX_CPU_KERNELS", "1") == "0":
        return "PERSONAPLEX_CPU_KERNELS is 0"
    if not KERNELS.exists():
        return f"{KERNELS.name} was not built"
    missing = KERNELS_NEED - _processor_features()
    return f"the processor lacks {', '.join(sorted(missing))}" if missing else None


def _processor_features() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()


@contextmanager
def attention_kernels(model: Path) -> Iterator[None]:
    """Around the making of a session for the file `model`: attention over an 8-bit cache is then done in one piece.

    ONNX Runtime 1.31 does it in blocks (FlashAttention) unless the environment says otherwise while a session is
    made. On a CPU a step over an 8-bit cache takes 1.4 to 2.2 times as long so, over other caches half as long.
    """
    chosen = os.environ.get(_NO_FLASH)
    if chosen is None and _OF_8_BIT_CACHES in model.read_bytes():
        os.environ[_NO_FLASH] = "1"
    try:
        yield
    finally:
        if chosen is None:
            os.environ.pop(_NO_FLASH, None)


def weights_of(model: Path) -> Path:
    """The file beside `model` that ONNX Runtime maps into memory."""
    return model.with_name(model.name + ".data")


def forget_pages(file: Path) -> None:
    """Give back the pages of `file` that this process has mapped and read; who reads them again gets them again.

    Kernels lay their matrices out anew when a session is made, and do not look at the file's any more.
    """
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, path = line.split(maxsplit=5)
        if path == str(file.resolve()):
            start, stop = (int(address, 16) for address in span.split("-"))
            madvise(start, stop - start, mmap.MADV_DONTNEED)
