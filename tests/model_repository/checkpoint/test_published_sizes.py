"""Checkpoints of the published sizes open from their headers in every format; their weights are holes in the files."""

from __future__ import annotations

import json
import math
import resource
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGUFWriter

from model_repository.checkpoint.folder import LM_FILE, MIMI_FILE, MLX_MIMI_FILE, TOKENIZER_FILE, Checkpoint
from model_repository.checkpoint.geometry import Geometry
from model_repository.checkpoint.layout import is_required, lm_shapes, mimi_shapes
from model_repository.checkpoint.weights.tensors import Shape
from tests.model_repository.checkpoint.writers import gguf_metadata, published_kinds

PUBLISHED = Geometry.from_config({})
PRUNED = Geometry.from_config({"lm": {"num_layers": 24}})
SIZES = {"F32": 4, "BF16": 2, "U32": 4}

Tensors = Mapping[str, tuple[str, Shape]]


def holes(path: Path, tensors: Tensors) -> None:
    """A safetensors file whose data was never written: it takes no room and reads as zeros."""
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + math.prod(shape) * SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + end)


def beside(folder: Path, mimi: str = MIMI_FILE) -> None:
    """The published config says nothing of geometry; one voice, as the browser port has it."""
    (folder / "voices").mkdir()
    holes(folder / mimi, {name: ("F32", shape) for name, shape in mimi_shapes(PUBLISHED.mimi).items()})
    (folder / TOKENIZER_FILE).touch()
    (folder / "config.json").write_text('{"model_type": "personaplex", "version": "7b-v1"}')
    (folder / "voices" / "NATF0.embeddings.bin").write_bytes(bytes(50 * 4096 * 4))
    ring = {"num_frames": 50, "dim": 4096, "cache": [[1] * 4] * 17}
    (folder / "voices" / "NATF0.cache.json").write_text(json.dumps(ring))


def published(folder: Path, geometry: Geometry) -> None:
    holes(folder / LM_FILE, {name: ("BF16", shape) for name, shape in lm_shapes(geometry.lm).items()})
    beside(folder)


def gguf(folder: Path, geometry: Geometry) -> None:
    path = folder / "personaplex-q4_k.gguf"
    writer = GGUFWriter(path, "personaplex")
    for key, value in gguf_metadata(geometry.lm).items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f"personaplex.{key}", value)
    total = 0
    for name, shape in lm_shapes(geometry.lm).items():
        kind = published_kinds(name)
        elements, size = GGML_QUANT_SIZES[kind]
        count = math.prod(shape) // elements * size
        writer.add_tensor_info(name, shape, np.dtype(np.float32), count, kind)
        total += -(-count // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 32 + total)
    beside(folder)


def mlx(folder: Path, geometry: Geometry) -> None:
    """4 bits, with the depth steps that are used only, and their feed-forwards below one another."""
    files: dict[str, dict[str, tuple[str, Shape]]] = {"temporal": {}, "depformer": {}, "embeddings": {}}
    for name, shape in lm_shapes(geometry.lm).items():
        if not is_required(name) or (".gating." in name and name.startswith("depformer")):
            continue
        if name.startswith("depformer.") and "self_attn" in name:
            shape = (shape[0] // 2, shape[1])
        quantized = name.startswith(("transformer.", "depformer.", "depformer_in.")) and len(shape) == 2
        file = files["temporal" if name.startswith(("transformer.", "out_norm.")) else "depformer"]
        add(files["embeddings"] if not quantized and len(shape) == 2 else file, name, shape, quantized)
    depth = geometry.lm.depformer
    for layer in range(depth.num_layers):
        gating = f"depformer.layers.{layer}.gating"
        add(files["depformer"], f"{gating}.linear_in.weight", (8 * 2 * depth.hidden, depth.dim), True)
        add(files["depformer"], f"{gating}.linear_out.weight", (8 * depth.dim, depth.hidden), True)
    for stem, tensors in files.items():
        holes(folder / f"{stem}.safetensors", tensors)
    beside(folder, MLX_MIMI_FILE)


def add(file: dict[str, tuple[str, Shape]], name: str, shape: Shape, quantized: bool) -> None:
    if not quantized:
        file[name] = ("BF16", shape)
        return
    file[name] = ("U32", (shape[0], shape[1] // 8))
    stem = name.removesuffix("weight")
    file |= {f"{stem}{part}": ("BF16", (shape[0], shape[1] // 64)) for part in ("scales", "biases")}


@pytest.mark.parametrize("geometry", [PUBLISHED, PRUNED], ids=["32 layers", "24 layers"])
@pytest.mark.parametrize("write", [published, gguf, mlx])
def test_it_opens_from_its_headers(tmp_path: Path, write: Any, geometry: Geometry) -> None:
    write(tmp_path, geometry)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    checkpoint = Checkpoint.open(tmp_path)
    lm = checkpoint.geometry.lm
    assert (lm.temporal, lm.depformer) == (geometry.lm.temporal, geometry.lm.depformer)
    assert lm.depformer_steps == (8 if write is mlx else 16)
    assert checkpoint.geometry.mimi == PUBLISHED.mimi
    last = f"transformer.layers.{lm.temporal.num_layers - 1}.gating.linear_out.weight"
    assert not checkpoint.lm.read(last, slice(4090, 4096)).any()
    assert checkpoint.voice("NATF0").frames == 51
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
