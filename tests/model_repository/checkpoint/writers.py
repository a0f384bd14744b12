"""Writes a checkpoint in the other formats people have: GGUF (by the `gguf` package) and MLX."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy
from gguf import GGMLQuantizationType, GGUFWriter

from model_repository.checkpoint.folder import CONFIG_FILE, MIMI_FILE, TOKENIZER_FILE, Checkpoint
from model_repository.checkpoint.geometry import LmGeometry
from tests.model_repository.checkpoint.kquants import quantize

Kind = GGMLQuantizationType
Array = np.ndarray[Any, np.dtype[Any]]

EMBEDDINGS = ("emb.", "text_emb.", "depformer_emb.", "depformer_text_emb.")


def published_kinds(name: str) -> Kind:
    """The types of the published GGUF: Q4_K matrices, Q4_0 embeddings, F32 norms."""
    if name.endswith(".alpha"):
        return Kind.F32
    return Kind.Q4_0 if name.startswith(EMBEDDINGS) else Kind.Q4_K


def beside_the_weights(source: Checkpoint, folder: Path, mimi: str = MIMI_FILE, config: bool = True) -> None:
    """Everything of a checkpoint but the language model."""
    (folder / "voices").mkdir(parents=True, exist_ok=True)
    for file in (source.path / "voices").iterdir():
        shutil.copyfile(file, folder / "voices" / file.name)
    shutil.copyfile(source.path / MIMI_FILE, folder / mimi)
    shutil.copyfile(source.path / TOKENIZER_FILE, folder / TOKENIZER_FILE)
    if config:
        shutil.copyfile(source.path / CONFIG_FILE, folder / CONFIG_FILE)


def gguf_metadata(lm: LmGeometry) -> dict[str, int | float]:
    """The keys of the published file; its feed-forward widths are the nominal ones."""
    return {
        "block_count": lm.temporal.num_layers,
        "embedding_length": lm.dim,
        "feed_forward_length": lm.temporal.hidden * 3 // 2,
        "attention.head_count": lm.temporal.num_heads,
        "text_vocab_size": lm.text_card + 1,
        "audio_vocab_size": lm.card + 1,
        "num_codebooks": 16,
        "rope.freq_base": lm.temporal.max_period,
        "depformer.embedding_length": lm.depformer.dim,
        "depformer.block_count": lm.depformer.num_layers,
        "depformer.feed_forward_length": lm.depformer.hidden * 3 // 2,
        "depformer.attention.head_count": lm.depformer.num_heads,
        "depformer.num_codebooks": lm.depformer_steps,
    }


def write_gguf(
    path: Path,
    tensors: Mapping[str, Array],
    metadata: Mapping[str, int | float],
    kind_of: Callable[[str], Kind] = published_kinds,
    architecture: str = "personaplex",
    flat_norms: bool = False,
) -> Path:
    """The tensors in one GGUF file; with `flat_norms`, norms lose the empty axes that GGML does not keep."""
    writer = GGUFWriter(path, architecture)
    for key, value in metadata.items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"personaplex.{key}", value)
    writer.add_array("tokenizer.words", ["a", "b"])
    for name, tensor in tensors.items():
        stored = tensor.reshape(-1) if flat_norms and name.endswith(".alpha") else tensor
        kind = kind_of(name)
        writer.add_tensor(name, quantize(stored.astype(np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def cut(path: Path, pieces: int) -> Path:
    """Replaces a file by raw pieces `NAME.shard-00` …; the first."""
    content = path.read_bytes()
    size = -(-len(content) // pieces)
    for index in range(pieces):
        path.with_name(f"{path.name}.shard-{index:02d}").write_bytes(content[index * size : (index + 1) * size])
    path.unlink()
    return path.with_name(f"{path.name}.shard-00")


def mlx_quantize(matrix: Array, bits: int, group: int = 64) -> dict[str, Array]:
    """`weight` uint32 [rows, columns · bits / 32], `scales` and `biases` bfloat16 [rows, columns / group]."""
    rows, columns = matrix.shape
    groups = matrix.astype(np.float32).reshape(rows, -1, group)
    low = groups.min(-1).astype(ml_dtypes.bfloat16)
    scale = ((groups.max(-1) - groups.min(-1)) / (2**bits - 1)).astype(ml_dtypes.bfloat16)
    steps = np.round(
        (groups - low.astype(np.float32)[..., None]) / np.maximum(scale.astype(np.float32), 1e-12)[..., None]
    )
    q = np.clip(steps, 0, 2**bits - 1).astype(np.uint32).reshape(rows, -1, 32 // bits)
    packed = np.bitwise_or.reduce(q << (bits * np.arange(32 // bits, dtype=np.uint32)), axis=-1)
    assert packed.shape == (rows, columns * bits // 32)
    return {"weight": packed, "scales": scale, "biases": low}


def mlx_dequantize(quantized: Mapping[str, Array], bits: int, group: int = 64) -> Array:
    """What MLX makes of it, one value at a time: the definition, not the reader's way."""
    packed, scales, biases = (quantized[part] for part in ("weight", "scales", "biases"))
    q = np.stack([(packed >> (bits * index)) & (2**bits - 1) for index in range(32 // bits)], axis=-1)
    q = q.reshape(len(packed), -1).astype(np.float32)
    return q * np.repeat(scales.astype(np.float32), group, 1) + np.repeat(biases.astype(np.float32), group, 1)


def write_mlx(
    folder: Path, tensors: Mapping[str, Array], bits: int, underscores: bool = False, all_steps: bool = False
) -> dict[str, Array]:
    """The three files of an MLX folder; what their tensors are worth, by the reference's names.

    With `underscores` a part of a parameter is spelled `X_scales` and the projections `out_proj_weight`; with
    `all_steps` the feed-forwards of the depth steps lie below one another.
    """
    files: dict[str, dict[str, Array]] = {"temporal": {}, "depformer": {}, "embeddings": {}}
    worth: dict[str, Array] = {}
    for name, tensor in (_joined(tensors) if all_steps else tensors).items():
        in_embeddings = name.startswith((*EMBEDDINGS, "text_linear.", "linears."))
        file = files["embeddings" if in_embeddings else "depformer" if name.startswith("depformer") else "temporal"]
        if in_embeddings or name.endswith(".alpha"):
            file[name] = tensor.astype(ml_dtypes.bfloat16)
            worth[name] = file[name].astype(np.float32)
            continue
        quantized = mlx_quantize(tensor, bits)
        stem = name.removesuffix(".weight").removesuffix("_weight")
        mark = "_" if stem.endswith(("in_proj", "out_proj")) and underscores else "."
        file |= {f"{stem}{mark}{part}": array for part, array in quantized.items()}
        worth[name] = mlx_dequantize(quantized, bits)
    for name, content in files.items():
        safetensors.numpy.save_file(content, folder / f"{name}.safetensors")
    return _split(worth, tensors) if all_steps else worth


def _joined(tensors: Mapping[str, Array]) -> dict[str, Array]:
    joined: dict[str, list[Array]] = {}
    for name, tensor in tensors.items():
        head, _, rest = name.partition(".gating.")
        step, _, linear = rest.partition(".")
        joined.setdefault(f"{head}.gating.{linear}" if step.isdigit() else name, []).append(tensor)
    return {name: np.concatenate(parts) for name, parts in joined.items()}


def _split(worth: Mapping[str, Array], tensors: Mapping[str, Array]) -> dict[str, Array]:
    split = {}
    for name, tensor in tensors.items():
        head, _, rest = name.partition(".gating.")
        step, _, linear = rest.partition(".")
        if step.isdigit():
            first = int(step) * len(tensor)
            split[name] = worth[f"{head}.gating.{linear}"][first : first + len(tensor)]
        else:
            split[name] = worth[name]
    return split
