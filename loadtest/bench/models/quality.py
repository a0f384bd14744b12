"""Measure the quantization error of each variant on random weights with outlier channels: `make bench-quality`.

The checkpoint is that of `loadtest.bench.models.outlier_weights`. The baseline is round-to-nearest: each block of
128 weights is rounded to a uniform grid from its minimum to its maximum, without smoothing or search. Its weights are
stored and multiplied as float32, so its size, memory and time are not comparable. It also has an advantage: the
variants round activations to 8 bits, and int4 rounds the embedding tables.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from gateway.cli import run
from loadtest.bench.models.outlier_weights import MIDDLE_SIZE, outlier_weights
from model_repository.build import build_repository
from model_repository.checkpoint.folder import LM_FILE
from model_repository.quantize.config import AUDIO_HEADS
from model_repository.synthetic.tiny import write_tiny_checkpoint

BLOCK = 128
VARIANTS = ("fp16", "int8", "mixed", "int4")


def round_plainly(checkpoint: Path, out: Path, bits: int) -> None:
    """Copy a float32 checkpoint, rounded: temporal layers to `bits`, all other matrices but the audio heads to 8."""
    shutil.copytree(checkpoint, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(LM_FILE))
    tensors = load_file(checkpoint / LM_FILE)
    for name, weight in tensors.items():
        if weight.ndim == 2 and "emb" not in name and not name.startswith(AUDIO_HEADS):
            tensors[name] = _rounded(weight, bits if name.startswith("transformer.") else 8)
    save_file(tensors, out / LM_FILE)


def _rounded(weight: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    rows, columns = weight.shape
    blocks = np.pad(weight, ((0, 0), (0, -columns % BLOCK))).reshape(rows, -1, BLOCK)
    low, high = blocks.min(-1, keepdims=True).clip(max=0), blocks.max(-1, keepdims=True).clip(min=0)
    scales = np.maximum(high - low, 1e-20) / (2**bits - 1)
    zeros = np.rint(-low / scales)
    quantized = np.clip(np.rint(blocks / scales) + zeros, 0, 2**bits - 1)
    rounded: NDArray[np.float32] = ((quantized - zeros) * scales).reshape(rows, -1)[:, :columns].astype(np.float32)
    return rounded


def build_all(folder: Path, seed: int) -> tuple[Path, list[Path]]:
    """Build the reference and the models to compare with it, unless they exist; return their folders."""
    checkpoint, reference = folder / "checkpoint", folder / "fp32"
    others = [folder / name for name in (*VARIANTS, "plain-int8", "plain-int4")]
    if not all((models / "manifest.json").exists() for models in (reference, *others)):
        write_tiny_checkpoint(checkpoint, seed, True, MIDDLE_SIZE, lm_dtype="float32", lm_weights=outlier_weights)
        build_repository(checkpoint, reference, slots=1)
        for models in others:
            print(f"building {models}", flush=True)
            if models.name.startswith("plain"):
                rounded = folder / "rounded"
                round_plainly(checkpoint, rounded, bits=int(models.name[-1]))
                build_repository(rounded, models, slots=1)
                shutil.rmtree(rounded)
            else:
                build_repository(checkpoint, models, slots=1, variant=models.name)
        shutil.rmtree(checkpoint)
    return reference, others


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/quality"), help="folder for models and JSON: 6 GB")
    parser.add_argument("--frames", type=int, default=100, help="frames of synthetic speech to process (default 100)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and of the speech (default 0)")
    arguments = parser.parse_args()
    folder = arguments.out / str(arguments.seed)
    folder.mkdir(parents=True, exist_ok=True)
    reference, others = build_all(folder, arguments.seed)
    options = [
        "--columns",
        str(arguments.frames),
        "--seed",
        str(arguments.seed),
        "--json",
        str(folder / "quality.json"),
    ]
    raise SystemExit(run(["evaluate", *map(str, others), "--against", str(reference), *options]))


if __name__ == "__main__":
    main()
