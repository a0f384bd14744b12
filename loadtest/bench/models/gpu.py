"""Measure the models on a GPU: `make bench-gpu`.

1. A small model, built for CPU and CUDA: compares their outputs for the same inputs, and counts nodes by execution
   provider, from ONNX Runtime's profile.
2. Random weights of the published size: frame times of 1 to 128 conversations, with CUDA graphs and without, with
   cuDNN's attention and FlashAttention, with quantized weights as they are and unpacked, beside the estimate for an
   H200; a chunk of a prompt; and the memory bandwidth that reading weights, keys and values amounts to.

Needs 35 GB of disk in build/gpu. Without a GPU it prints the reason and exits with status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from gateway.cli.console import result_console
from loadtest.bench.models.graph_frames import WARM_UP, Frames, case
from loadtest.bench.models.random_checkpoint import is_complete, write_random_checkpoint
from loadtest.fake_device.profiles import PROFILES, WINDOW, Profile
from loadtest.paths import ROOT
from model_repository.build import build_repository
from model_repository.serving.device import FUSED_MATMULS, CudaMemory, DeviceError
from model_repository.serving.device_session import CUDNN_ATTENTION
from model_repository.serving.memory import MemoryEstimate
from model_repository.serving.row_request import run_one
from model_repository.serving.session import ELEMENTS
from model_repository.serving.temporal import TemporalModel
from model_repository.synthetic.tiny import write_tiny_checkpoint
from model_repository.triton_config import MODELS
from model_repository.variants import CUDA_VARIANTS

ROWS = [1, 2, 4, 8, 16, 32, 64, 128]
CHUNK = 64
"""Positions of a prompt that run together, see `DeviceSession.chunk`."""
CONTEXTS = [100, 1500, 2999]
VARIANTS = tuple(CUDA_VARIANTS)
QUANTIZED = ("int8", "int4", "mixed")
ARMS: Mapping[str, tuple[bool, Mapping[str, str]]] = {
    "captured": (True, {}),
    "not captured": (False, {}),
    "FlashAttention": (True, {CUDNN_ATTENTION: "0"}),
    "unpacked": (True, {FUSED_MATMULS: "0"}),
}
"""By name, whether runs are captured, and the environment. "unpacked" is for quantized weights."""
NO_GPU = 1
STEPS = 200
"""Steps of the small model: more than its context of 150."""


def graph(models: Path, name: str) -> Path:
    return models / "triton" / name / "1" / "model.onnx"


def placements(model: Path, device: CudaMemory) -> Counter[str]:
    """Count nodes by execution provider, from the profile of one run with one row of ones."""
    with tempfile.TemporaryDirectory() as folder:
        session_options = ort.SessionOptions()
        session_options.enable_profiling = True
        session_options.profile_file_prefix = str(Path(folder) / "profile")
        if device.operators is not None:
            session_options.register_custom_ops_library(str(device.operators))
        providers = [(name, {**given, "enable_cuda_graph": "0"}) for name, given in device.providers]
        if device.kind == "cpu":
            providers = [("CPUExecutionProvider", {})]
        session = ort.InferenceSession(str(model), session_options, providers=providers)
        session.run_with_ort_values(None, {node.name: _ones(node) for node in session.get_inputs()})
        events = json.loads(Path(session.end_profiling()).read_text())
    ran = {event["name"]: event["args"]["provider"] for event in events if "provider" in event.get("args", {})}
    return Counter(provider.removesuffix("ExecutionProvider") for provider in ran.values())


def _ones(node: Any) -> ort.OrtValue:
    """One row and one column of an input."""
    element, dtype = ELEMENTS[node.type]
    shape = [size if isinstance(size, int) else 1 for size in node.shape]
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ones(shape, dtype), element)


def agreement(ours: Path, theirs: Path, device: CudaMemory, steps: int = STEPS) -> tuple[float, float]:
    """Compare a repository on the device with one on the CPU, for the same inputs and greedy sampling.

    Returns the minimum cosine similarity of the hidden states and the share of equal text tokens.
    """
    manifest = json.loads((ours / "manifest.json").read_text())
    sizes = (2, manifest["text_card"], manifest["card"], manifest["context"] - 1)
    mine = TemporalModel(graph(ours, "temporal"), *sizes, device)
    reference = TemporalModel(graph(theirs, "temporal"), *sizes)
    columns = np.random.default_rng(0).integers(0, min(manifest["text_card"], manifest["card"]), (steps, 17))
    cosines, equal = [], []
    for model in (mine, reference):
        model.slots.begin(1)
    for step in range(steps):
        inputs: dict[str, NDArray[Any]] = {
            "columns": columns[step : step + 1],
            "sampler": np.array([0, step + 1, 1], np.int64),
            "temperature": np.zeros(1, np.float32),
        }
        a, b = (run_one(model, 1, inputs) for model in (mine, reference))
        cosines.append(a["hidden"] @ b["hidden"] / np.linalg.norm(a["hidden"]) / np.linalg.norm(b["hidden"]))
        equal.append(a["text_token"] == b["text_token"])
    return float(min(cosines)), float(np.mean(equal))


def _named(variant: str, kv: str | None) -> str:
    return f"{variant}-kv-{kv}" if kv else variant


def measure_small(work: Path, device: CudaMemory, console: Console) -> None:
    """Measure the small model in every variant: execution providers, and deviation from float32 on the CPU."""
    write_tiny_checkpoint(work / "tiny", force=True)
    build_repository(work / "tiny", work / "tiny-cpu", slots=2)
    table = Table("variant", "nodes", "min cosine", "equal tokens", title="small model, compared with fp32 on the CPU")
    for variant, kv in product(VARIANTS, (None, "int8")):
        name = _named(variant, kv)
        models = work / f"tiny-{name}"
        build_repository(work / "tiny", models, slots=2, variant=variant, kv=kv, device="cuda")
        ran: Counter[str] = sum((placements(graph(models, name), device) for name in MODELS), Counter())
        cosine, equal = agreement(models, work / "tiny-cpu", device)
        places = ", ".join(f"{provider} {count}" for provider, count in sorted(ran.items()))
        table.add_row(name, places, f"{cosine:.6f}", f"{equal:.3f}")
    console.print(table)


def measure_frames(models: Path, device: CudaMemory, rows: list[int], contexts: list[int], frames: int) -> list[Any]:
    """Measure frames, see `loadtest.bench.models.graph_frames.case`, and chunks of a prompt in milliseconds."""
    running = Frames(models, max(rows), device)
    for model in (running.encoder, running.temporal, running.depformer, running.decoder):
        model.warm_up()
    cases = []
    for count, context in product(rows, contexts):
        found = case(count, context, [running.frame(count, context) for _ in range(WARM_UP + frames)][WARM_UP:])
        chunks = [running.chunk(CHUNK, context) for _ in range(WARM_UP + 1)][1:]
        cases.append(found | {"chunk_ms": round(statistics.median(chunks), 3)})
    return cases


def predicted_ms(rows: int, context: int) -> float:
    """Milliseconds of a frame of bf16 on an H200, by the estimates of the fake device."""
    filled = min(context, WINDOW)
    timings = PROFILES[Profile.H200].values()
    return 1e3 * sum(timing.run + rows * (timing.row + filled * timing.position) for timing in timings)


def measure_full(options: argparse.Namespace, free: int, console: Console) -> None:
    """Measure the model of the published size, with as many rows as fit into `free` bytes.

    Each of `ARMS` runs in a process of its own, so that all memory is free before it.
    """
    name = _named(options.variant, options.kv)
    checkpoint, models = options.work / "checkpoint", options.work / f"models-{name}"
    if options.tiny:
        checkpoint, models = options.work / "tiny", options.work / f"tiny-{name}"
    else:
        with Progress(console=console) as bar:
            if not is_complete(checkpoint):
                task = bar.add_task("random weights", total=1.0)
                write_random_checkpoint(checkpoint, {}, progress=lambda done: bar.update(task, completed=done))
            if not (models / "manifest.json").exists():
                task = bar.add_task(f"building {name}", total=1.0)
                build_repository(
                    checkpoint,
                    models,
                    slots=max(options.rows),
                    variant=options.variant,
                    kv=options.kv,
                    device="cuda",
                    progress=lambda _, done: bar.update(task, completed=done),
                )
    estimate = MemoryEstimate.of(graph(models, "temporal"))
    console.print(f"temporal: weights {estimate.weights / 1e9:.1f} GB, each slot {estimate.slot / 1e9:.2f} GB")
    fitting = (free - 2 * estimate.total(0)) // estimate.slot
    if fitting < 1:
        console.print(f"one conversation does not fit in {free / 1e9:.1f} GB")
        return
    options.rows = [rows for rows in options.rows if rows <= fitting]
    arms = {name: arm for name, arm in ARMS.items() if name != "unpacked" or options.variant in QUANTIZED}
    measured = {name: _in_process(options, models, *arm) for name, arm in arms.items()}
    (options.work / f"{models.name}.json").write_text(json.dumps(measured, indent=1))
    others = [name for name in measured if name != "captured"]
    stage_names = ("encode", "temporal", "depformer", "decode")
    table = Table("rows", "context", "frame ms", "H200, estimated", *stage_names, "chunk", "GB/s", *others)
    captured = measured["captured"]
    for index, found in enumerate(captured):
        stages, filled = found["stages_ms"], _filled(models, found["context"])
        rate = (estimate.weights + found["rows"] * estimate.slot * filled) / stages["temporal"] / 1e6
        estimated = predicted_ms(found["rows"], found["context"])
        times = [found["frame_ms"], estimated, *stages.values(), found["chunk_ms"]]
        beside = [f"{measured[name][index]['frame_ms']:.2f}" for name in others]
        cells = [*(f"{time:.2f}" for time in times), f"{rate:.0f}", *beside]
        table.add_row(str(found["rows"]), str(found["context"]), *cells)
    console.print(table)
    most = [found["rows"] for found in captured if found["most_ms"] < 80]
    console.print(f"all frames within 80 ms: up to {max(most, default=0)} conversations")
    for name in others:
        pairs = zip(measured[name], captured, strict=True)
        ratio = statistics.mean(other["frame_ms"] / found["frame_ms"] for other, found in pairs)
        console.print(f"{name}: a frame takes {ratio:.2f} times as long")


def _filled(models: Path, context: int) -> float:
    """Share of the KV cache that `context` positions fill."""
    window = int(json.loads((models / "manifest.json").read_text())["context"]) - 1
    return min(1.0, context / window)


def _in_process(options: argparse.Namespace, models: Path, capture: bool, environment: Mapping[str, str]) -> list[Any]:
    numbers = [
        "--rows",
        *map(str, options.rows),
        "--contexts",
        *map(str, options.contexts),
        "--frames",
        str(options.frames),
    ]
    command = [sys.executable, "-m", "loadtest.bench.models.gpu", "--device", str(options.device), *numbers]
    command += ["--measure", str(models), *([] if capture else ["--no-capture"])]
    done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True)
    cases: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return cases


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--variant", choices=VARIANTS, default="bf16")
    parser.add_argument("--kv", choices=["int8"], help="keys and values; default: those of the variant")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--contexts", type=int, nargs="+", default=CONTEXTS)
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument(
        "--tiny", action="store_true", help="measure frames of the small model instead of the published size"
    )
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--no-capture", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    console = result_console(sys.stdout if options.measure is None else sys.stderr)
    try:
        device = CudaMemory(options.device, capture=not options.no_capture)
    except DeviceError as error:
        console.print(f"no usable GPU: {error}")
        return NO_GPU
    if options.measure is not None:
        print(json.dumps(measure_frames(options.measure, device, options.rows, options.contexts, options.frames)))
        return 0
    options.work.mkdir(parents=True, exist_ok=True)
    console.print(f"{device.free() / 1e9:.1f} GB of device memory are free")
    measure_small(options.work, device, console)
    measure_full(options, device.free(), console)
    return 0


if __name__ == "__main__":
    sys.exit(main())
