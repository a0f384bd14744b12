"""Compare this project's CPU kernels with what ONNX Runtime does without them: `make bench-kernels`.

Matmuls with 4- and 8-bit matrices of the published size, more of them than the CPU's caches hold; and both halves of
Mimi, of the published size and of the small speaking model's, whose convolutions of elu(x) are one kernel each. Both
sides run in this process, alternately. Reports medians of several rounds, and their ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
from rich.table import Table

from gateway.cli.console import result_console
from model_repository.checkpoint.geometry import Geometry
from model_repository.checkpoint.layout import mimi_shapes
from model_repository.checkpoint.weights.tensors import Tensor, TensorSource
from model_repository.graph.builder import ROWS, Graph
from model_repository.graph.weights import Weights
from model_repository.mimi_decoder import graph as decoder
from model_repository.mimi_encoder import graph as encoder
from model_repository.quantize.config import QuantizationConfig
from model_repository.serving.cpu import missing_for_kernels, open_on_cpu
from model_repository.serving.session import StatefulSession
from model_repository.synthetic.random_weights import random_weights
from model_repository.synthetic.speaking.config import PUBLISHED_CARD, SpeakingConfig
from model_repository.variants import Precision

COLUMNS, DEPTH = 11264, 4096
"""Shape of a matrix of the published size: one half of a layer's gated feed-forward."""

MATRICES = 8
VARIANTS = {4: Precision.INT4, 8: Precision.INT8}


T = TypeVar("T")

MIMI: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "published": {},
    "speaking": SpeakingConfig().sections(PUBLISHED_CARD),
}
"""Geometries by name, as a checkpoint's config.json states them."""

Run = Callable[[int], object]
"""A run of so many rows."""


def gaussian(*shape: int, seed: int) -> npt.NDArray[np.float32]:
    """Return random values of `shape`."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def _rows(seed: int, rows: slice | None) -> npt.NDArray[np.float32]:
    return gaussian(COLUMNS, DEPTH, seed=seed)[rows or slice(None)]


def write_matmuls(folder: Path, bits: int) -> Path:
    """Write a graph of `MATRICES` matmuls with the same x. ONNX Runtime would merge equal matrices."""
    matrices = {f"w{seed}": Tensor((COLUMNS, DEPTH), partial(_rows, seed)) for seed in range(MATRICES)}
    graph = Graph("matmuls")
    weights = Weights(graph, TensorSource(folder, matrices), QuantizationConfig(VARIANTS[bits]))
    x = graph.input("x", ir.DataType.FLOAT, [ROWS, DEPTH])
    for name in matrices:
        graph.output(f"y{name}", weights.linear(x, name))
    graph.save(folder / f"{bits}.onnx")
    return folder / f"{bits}.onnx"


def _rows_of(array: npt.NDArray[np.float32], rows: slice | None) -> npt.NDArray[np.float32]:
    return array[rows or slice(None)]


def write_mimi(folder: Path, name: str) -> dict[str, Path]:
    """Write the graphs of Mimi's halves with random weights."""
    geometry = Geometry.from_config(MIMI[name]).mimi
    weights = random_weights(mimi_shapes(geometry), seed=0)
    tensors = {key: Tensor(array.shape, partial(_rows_of, array)) for key, array in weights.items()}
    written = {}
    for half, build in (("encoder", encoder.build), ("decoder", decoder.build)):
        written[half] = folder / f"{name}-{half}.onnx"
        build(geometry, TensorSource(folder, tensors)).save(written[half])
    return written


def sessions(opened: Callable[[Path], T], model: Path) -> dict[str, T]:
    """Open the same file with the kernels of this project and without."""
    with mock.patch.dict(os.environ, PERSONAPLEX_CPU_KERNELS="0"):
        theirs = opened(model)
    return {"ours": opened(model), "theirs": theirs}


def matmuls(model: Path) -> dict[str, Run]:
    """Return runs of matmuls by kernels."""

    def run(session: ort.InferenceSession, rows: int) -> None:
        session.run(None, {"x": gaussian(rows, DEPTH, seed=rows)})

    return {kernels: partial(run, session) for kernels, session in sessions(open_on_cpu, model).items()}


def frames(model: Path, slots: int) -> dict[str, Run]:
    """Return runs of one frame of a half of Mimi by kernels."""
    found = sessions(partial(StatefulSession, slots=slots), model)
    for session in found.values():
        session.feeds["active"][:] = True
        if "pcm" in session.feeds:
            session.feeds["pcm"][:] = gaussian(*session.feeds["pcm"].shape, seed=0) / 10
    return {kernels: partial(session.run, 0) for kernels, session in found.items()}


def measure(runs: Mapping[str, Run], rows: list[int], rounds: int) -> dict[int, dict[str, float]]:
    """Return milliseconds of a run by number of rows and by kernels."""
    times: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(rounds + 1):
        for count in rows:
            for kernels, run in runs.items():
                began = time.perf_counter()
                run(count)
                times[count][kernels].append(1e3 * (time.perf_counter() - began))
    # The first run of a shape plans its memory.
    return {
        count: {kernels: statistics.median(taken[1:]) for kernels, taken in of.items()} for count, of in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 128])
    parser.add_argument("--conversations", type=int, nargs="+", default=[1, 4, 8, 24])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    options = parser.parse_args()
    if missing := missing_for_kernels():
        sys.exit(f"this project's kernels are not available: {missing}")
    stats: dict[str, dict[int, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for bits in VARIANTS:
            taken = measure(matmuls(write_matmuls(folder, bits)), options.rows, options.rounds)
            stats[f"matmul, {bits} bits"] = {
                rows: {kernels: time / MATRICES for kernels, time in of.items()} for rows, of in taken.items()
            }
        for name in MIMI:
            for half, model in write_mimi(folder, name).items():
                runs = frames(model, max(options.conversations))
                stats[f"Mimi {half}, {name}"] = measure(runs, options.conversations, options.rounds)
    table = Table("what", "rows", "ours, ms", "without, ms", "ratio")
    for what, by_rows in stats.items():
        for rows, of in by_rows.items():
            shown = what, rows, f"{of['ours']:.2f}", f"{of['theirs']:.2f}", f"{of['theirs'] / of['ours']:.2f}"
            table.add_row(*map(str, shown))
    result_console().print(table)
    if options.json:
        options.json.write_text(json.dumps(stats, indent=1) + "\n")


if __name__ == "__main__":
    main()
