"""Compare block-quantized matmuls of this project's kernels with those of ONNX Runtime: `make bench-matmuls`.

Both run in this process, alternately, over more matrices of the published size than the CPU's caches hold. Reports
medians of several rounds, and their ratio.
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
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
from rich.table import Table

from gateway.cli.console import result_console
from model_repository.checkpoint.weights.tensors import Tensor, TensorSource
from model_repository.graph.builder import ROWS, Graph
from model_repository.graph.weights import Weights
from model_repository.quantize.config import QuantizationConfig
from model_repository.serving.cpu import missing_for_kernels, open_on_cpu
from model_repository.variants import Precision

COLUMNS, DEPTH = 11264, 4096
"""Shape of a matrix of the published size: one half of a layer's gated feed-forward."""

MATRICES = 8
VARIANTS = {4: Precision.INT4, 8: Precision.INT8}


def gaussian(rows: int, seed: int) -> npt.NDArray[np.float32]:
    """Return random values [rows, DEPTH]."""
    return np.random.default_rng(seed).standard_normal((rows, DEPTH), np.float32)


def _rows(seed: int, rows: slice | None) -> npt.NDArray[np.float32]:
    return gaussian(COLUMNS, seed)[rows or slice(None)]


def write(folder: Path, bits: int) -> Path:
    """Write a graph of `MATRICES` matmuls with the same x. ONNX Runtime would merge equal matrices."""
    matrices = {f"w{seed}": Tensor((COLUMNS, DEPTH), partial(_rows, seed)) for seed in range(MATRICES)}
    graph = Graph("matmuls")
    weights = Weights(graph, TensorSource(folder, matrices), QuantizationConfig(VARIANTS[bits]))
    x = graph.input("x", ir.DataType.FLOAT, [ROWS, DEPTH])
    for name in matrices:
        graph.output(f"y{name}", weights.linear(x, name))
    graph.save(folder / f"{bits}.onnx")
    return folder / f"{bits}.onnx"


def sessions(model: Path) -> dict[str, ort.InferenceSession]:
    """Open the same file with the kernels of this project and without."""
    with mock.patch.dict(os.environ, PERSONAPLEX_CPU_KERNELS="0"):
        theirs = open_on_cpu(model)
    return {"ours": open_on_cpu(model), "theirs": theirs}


def measure(model: Path, rows: list[int], rounds: int) -> dict[int, dict[str, float]]:
    """Return milliseconds of one matmul by number of rows and by kernels ("ours", "theirs")."""
    found = sessions(model)
    times: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(rounds + 1):
        for count in rows:
            x = gaussian(count, seed=count)
            for kernels, session in found.items():
                began = time.perf_counter()
                session.run(None, {"x": x})
                times[count][kernels].append(1e3 * (time.perf_counter() - began) / MATRICES)
    # The first run of a shape plans its memory.
    return {
        count: {kernels: statistics.median(taken[1:]) for kernels, taken in of.items()} for count, of in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 128])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    options = parser.parse_args()
    if missing := missing_for_kernels():
        sys.exit(f"this project's kernels are not available: {missing}")
    with tempfile.TemporaryDirectory() as folder:
        stats = {bits: measure(write(Path(folder), bits), options.rows, options.rounds) for bits in VARIANTS}
    table = Table("bits", "rows", "ours, ms", "ONNX Runtime's, ms", "ratio", "ours, 10⁹ MAC/s", "ours, GB/s")
    for bits, by_rows in stats.items():
        for rows, taken in by_rows.items():
            ours, theirs = taken["ours"], taken["theirs"]
            macs, read = rows * COLUMNS * DEPTH / ours / 1e6, COLUMNS * DEPTH * bits / 8 / ours / 1e6
            shown = (
                bits,
                rows,
                f"{ours:.2f}",
                f"{theirs:.2f}",
                f"{theirs / ours:.2f}",
                f"{macs:.0f}",
                f"{read:.0f}",
            )
            table.add_row(*map(str, shown))
    result_console().print(table)
    if options.json:
        options.json.write_text(json.dumps(stats, indent=1) + "\n")


if __name__ == "__main__":
    main()
