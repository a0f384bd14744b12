"""What the real CUDA provider makes of the graphs, on a machine without a GPU: `python -m tests.cuda.check`.

The onnxruntime-gpu of the locked version is fetched (255 MB) into build/cuda, and CUDA's own libraries are replaced by
`runtime.c`. Kernels compute nothing there, but all that ONNX Runtime decides before and around them is real: which
provider a node is placed on, whether a session may capture its runs, what is allocated and copied by a run. Checked for
every variant: each model's session runs on CUDA as a whole; each size of batch is captured once; then every run is one
replay that allocates nothing, copies no memory that is not pinned, and reads from the host what its capture read. Needs
a C compiler.

A ledger then counts what a captured run at the published widths consists of, see `ledger.py`, and compares it with
`BUDGETS`: without cuDNN, and with a stand-in for it, `cudnn.c`, which accepts every plan. If ONNX Runtime takes another
kernel for attention than expected, the check fails.

Graphs with int8 keys and values are checked without our operator, and with it if there is `nvcc` to compile it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
from collections import Counter
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from model_repository.build import build_repository
from model_repository.serving.device import OPERATORS
from model_repository.triton_config import MODELS
from model_repository.variants import CUDA_VARIANTS, CachePrecision, Variant
from tests.conftest import GOLDEN
from tests.cuda import published

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build" / "cuda"
LIBRARIES = ("libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcudart.so.13", "libcuda.so.1")
CUDNN = "libcudnn.so.9"
CUDNN_FUNCTION = re.compile(rb"\0(cudnn[A-Z]\w+)(?=\0)")
"""A name in the provider, which looks cuDNN's functions up by name."""
PREFIXES = re.compile(r"\b((?:cuda|__cuda|cublas|curand|cu[A-Z])\w*)")
NONE = WORK / "none"
"""In place of our operators."""
SLOTS = 4
STEPS = 20

INT8_KV = tuple(replace(CUDA_VARIANTS[name], cache=CachePrecision.INT8) for name in ("bf16", "int8"))
LEDGER = tuple(CUDA_VARIANTS[name] for name in ("fp16", "bf16", "int8", "int4", "mixed"))
"""Variants of the ledger."""
ROWS = (1, 8, 32, 64)
BUDGETS = {"temporal": 700, "depformer": 1000, "mimi_encoder": 410, "mimi_decoder": 365}
"""Nodes of a captured run."""
FEW_ROWS, SPLIT_NODES = 2, 3
"""With so few rows FlashAttention splits keys and values and combines the parts: so many more nodes per layer."""
CUDNN_NODES = 2
"""cuDNN's attention takes so many more nodes per layer: the lengths of queries, and zeros for rows without keys."""
OURS, SAVED_NODES = "our operator", 5
"""Our operator for int8 keys and values takes so many fewer nodes per layer."""
ARMS = ("FlashAttention", "cuDNN")
FORBIDDEN = ("RadixSort", "Dequantize", "memory", "unknown kernel")
"""In the name of a node of a captured run: logits are not sorted row by row, matrices are not unpacked to 16 bits, and
nothing is copied from or to the host."""


def prepare() -> Path:
    """The interpreter of an environment with onnxruntime-gpu and nothing of CUDA but headers."""
    python = WORK / "venv" / "bin" / "python"
    if python.exists():
        return python
    venv.create(WORK / "venv", with_pip=True)
    locked = [f"{name}=={metadata.version(name)}" for name in ("numpy", "onnx")]
    gpu = f"onnxruntime-gpu=={metadata.version('onnxruntime')}"
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, gpu, *locked], check=True)
    headers = [*pip, "--no-deps", "--target", str(WORK / "headers"), "nvidia-cuda-runtime>=13,<14"]
    subprocess.run(headers, check=True)
    return python


def compile_stand_in(provider: Path) -> Path:
    """The folder of the libraries that `provider` asks for."""
    folder = WORK / "stand-in"
    (folder / "crt").mkdir(parents=True, exist_ok=True)
    # Of the compiler's part of CUDA, its headers need only these words.
    (folder / "crt" / "host_defines.h").write_text(
        "#define __builtin_align__(n) __attribute__((aligned(n)))\n#define __align__(n) __builtin_align__(n)\n"
        "#define __device_builtin__\n#define __host__\n#define __device__\n"
    )
    source = (Path(__file__).parent / "runtime.c").read_text()
    wanted = subprocess.run(["nm", "-D", "--undefined-only", provider], capture_output=True, text=True, check=True)
    names = {match[1] for match in PREFIXES.finditer(wanted.stdout)} - set(PREFIXES.findall(source))
    (folder / "all.c").write_text(source + "".join(f"int {name}() {{ return 0; }}\n" for name in sorted(names)))
    (headers,) = (WORK / "headers").rglob("driver_types.h")
    for library in LIBRARIES:
        flags = ["-w", "-shared", "-fPIC", f"-I{folder}", f"-I{headers.parent}", f"-Wl,-soname,{library}"]
        subprocess.run(["cc", *flags, "-o", folder / library, folder / "all.c"], check=True)
    return folder


def compile_cudnn(provider: Path, stand_in: Path) -> Path:
    """The folder of a stand-in for cuDNN, which records in the one for CUDA."""
    folder = WORK / "cudnn"
    folder.mkdir(exist_ok=True)
    source = (Path(__file__).parent / "cudnn.c").read_text()
    names = {name.decode() for name in CUDNN_FUNCTION.findall(provider.read_bytes())}
    names -= set(re.findall(r"\b(cudnn\w+)\(", source))
    (folder / "all.c").write_text(source + "".join(f"int {name}() {{ return 0; }}\n" for name in sorted(names)))
    flags = ["-w", "-shared", "-fPIC", f"-Wl,-soname,{CUDNN}", f"-L{stand_in}", f"-l:{LIBRARIES[0]}"]
    subprocess.run(["cc", "-o", folder / CUDNN, folder / "all.c", *flags], check=True)
    return folder


def compile_operators() -> Path | None:
    """Our operators for CUDA; None without nvcc."""
    if shutil.which("nvcc") is None:
        return None
    library = WORK / OPERATORS.name
    script = OPERATORS.with_name("compile_cuda.sh")
    subprocess.run([script], env=os.environ | {"OUT": str(library)}, check=True)
    return library


def main() -> int:
    python = prepare()
    (provider,) = (WORK / "venv").rglob("libonnxruntime_providers_cuda.so")
    stand_in = compile_stand_in(provider)
    # Preloaded, so that there is one stand-in and not one of each name.
    preloaded = {"LD_PRELOAD": str(stand_in / LIBRARIES[0]), "PYTHONPATH": str(ROOT)}
    environment = os.environ | preloaded | {"LD_LIBRARY_PATH": str(stand_in)}
    with_cudnn = environment | {"LD_LIBRARY_PATH": f"{stand_in}:{compile_cudnn(provider, stand_in)}"}
    operators = compile_operators()
    failed = False
    for variant in (*CUDA_VARIANTS.values(), *INT8_KV):
        failed |= not check_sessions(python, environment, variant, None)
    for variant in LEDGER:
        for arm, given in zip(ARMS, (environment, with_cudnn), strict=True):
            failed |= not check_ledger(python, given, variant, arm, None)
    if operators is None:
        print("our operators: not checked, nvcc was not found")
        return int(failed)
    for variant in INT8_KV:
        failed |= not check_sessions(python, environment, variant, operators)
        failed |= not check_ledger(python, environment, variant, OURS, operators)
    return int(failed)


def attention(arm: str, rows: int) -> tuple[str, int]:
    """Part of the name of the kernel expected for attention, and the nodes per layer beyond the budget."""
    if arm == OURS:
        return "int8_kv6attendILi8EE", -SAVED_NODES
    if arm == "cuDNN":
        return "cudnnBackendExecute", CUDNN_NODES
    return ("flash_fwd_splitkv_kernel", SPLIT_NODES) if rows <= FEW_ROWS else ("flash_fwd_kernel", 0)


def check_ledger(python: Path, environment: dict[str, str], recipe: Variant, arm: str, operators: Path | None) -> bool:
    """Print nodes of captured runs by model and rows; whether they keep to the budgets."""
    variant = named(recipe)
    folder = WORK / f"ledger-{variant}"
    published.write(folder, recipe)
    found = {}
    for name in published.NAMES:
        model = folder / name / "1" / "model.onnx"
        command = [python, "-m", "tests.cuda.ledger", model, operators or NONE, *map(str, ROWS)]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{variant}, {arm}: {name}: failed\n{done.stderr}")
            return False
        found[name] = json.loads(done.stdout.splitlines()[-1])
    good = True
    for rows in map(str, ROWS):
        one, two = (Counter(found[f"temporal-{layers}"][rows]) for layers in (1, 2))
        nodes = {name: one[name] + (published.LAYERS - 1) * (two[name] - one[name]) for name in one.keys() | two.keys()}
        for model in BUDGETS:
            ledger = nodes if model == "temporal" else found[model][rows]
            total = sum(ledger.values())
            bad = [name for name in ledger if any(word in name for word in FORBIDDEN)]
            budget = BUDGETS[model]
            if model == "temporal":
                kernel, more = attention(arm, int(rows))
                budget += more * published.LAYERS
                if sum(count for name, count in ledger.items() if kernel in name) != published.LAYERS:
                    bad.append(f"attention is not by {kernel}")
            within = total <= budget and not bad
            good &= within
            print(f"{variant}, {arm}: {model}, {rows} rows: {total} nodes{'' if within else f' (not good: {bad})'}")
    return good


def check_sessions(python: Path, environment: dict[str, str], recipe: Variant, operators: Path | None) -> bool:
    """Whether the sessions of a variant of the golden checkpoint are good."""
    variant = named(recipe)
    models = WORK / f"models-{variant}"
    options = {"variant": recipe.name, "kv": recipe.cache, "device": "cuda"}
    build_repository(GOLDEN / "checkpoint", models, slots=SLOTS, **options)
    command = [python, "-m", "tests.cuda.sessions", models, str(SLOTS), str(STEPS), operators or NONE]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{variant}: failed\n{done.stderr}")
        return False
    found = json.loads(done.stdout.splitlines()[-1])
    expected = {"captures": 3, "replays": STEPS, "allocations": 0, "pageable": 0, "stale": 0}
    good = found == dict.fromkeys(MODELS, expected)
    with_ours = "" if operators is None else f", {OURS}"
    print(f"{variant}{with_ours}: {'good' if good else f'expected {expected} of each'}: {found}")
    return good


def named(recipe: Variant) -> str:
    """A variant with its keys and values."""
    return f"{recipe.name}-kv-{recipe.cache}"


if __name__ == "__main__":
    sys.exit(main())
