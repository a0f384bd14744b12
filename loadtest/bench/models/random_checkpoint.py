"""Write a random checkpoint of any size in the published layout, at the speed of the disk.

Generating 8.4 billion random numbers would take minutes. Instead, a million normal numbers are generated once. Each row
of a matrix is a slice of them with a random offset, sign and scale. All rows differ, and a matrix has the standard
deviation of `random_weights`. At most one block of a matrix is in memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from model_repository.checkpoint.folder import CONFIG_FILE, LM_FILE, MIMI_FILE, TOKENIZER_FILE
from model_repository.checkpoint.geometry import AGENT_CODEBOOKS, Geometry, LmGeometry
from model_repository.checkpoint.layout import lm_shapes, mimi_shapes
from model_repository.checkpoint.voices import VOICES_FOLDER
from model_repository.checkpoint.weights.tensors import Shape
from model_repository.synthetic.random_weights import deviation, random_weights
from model_repository.synthetic.tokenizer import train_tiny_tokenizer
from model_repository.synthetic.torch_writer import write_torch_tensors

VOICES = ("NATF0", "NATM0", "VARF0", "VARM0")
VOICE_FRAMES = 51

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_POOL = 1 << 20
_SCALES = (0.7, 0.9, 1.1, 1.2207)
"""Scales of a matrix's rows, equally frequent; their mean square is 1."""
_BLOCK_BYTES = 16 << 20
_SIGN = np.uint16(0x8000)
_MAX_PIECES = 1600
"""Maximum vocabulary that the training text of the tiny tokenizer allows. The checkpoint's may be larger."""

Array = npt.NDArray[Any]


def write_random_checkpoint(
    out: Path,
    config: Mapping[str, Mapping[str, Any]],
    seed: int = 0,
    progress: Callable[[float], None] = lambda done: None,
) -> None:
    """Write a checkpoint of the geometry `config` states ({}: the published one) to the folder `out`.

    Weight files are written last, and renamed when they are complete. `progress` receives the fraction done.
    """
    geometry = Geometry.from_config(config)
    (out / VOICES_FOLDER).mkdir(parents=True, exist_ok=True)
    (out / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n")
    (out / TOKENIZER_FILE).write_bytes(train_tiny_tokenizer(min(geometry.lm.text_card, _MAX_PIECES)))
    for index, name in enumerate(VOICES):
        voice = _voice(geometry.lm, np.random.default_rng([seed, index]))
        write_torch_tensors(out / VOICES_FOLDER / f"{name}.pt", voice)
    mimi, lm = mimi_shapes(geometry.mimi), lm_shapes(geometry.lm)
    _save(out / MIMI_FILE, mimi, np.dtype(np.float32), _independent(mimi, seed), lambda done: None)
    _save(out / LM_FILE, lm, _BFLOAT16, _sliced(lm, seed), progress)


def is_complete(out: Path) -> bool:
    """Return whether `write_random_checkpoint` has completed in this folder."""
    return (out / LM_FILE).is_file()


def _save(
    path: Path,
    shapes: Mapping[str, Shape],
    dtype: np.dtype[Any],
    blocks: Iterator[tuple[str, Array]],
    progress: Callable[[float], None],
) -> None:
    """Write a safetensors file from blocks of rows. The blocks of a tensor are in order."""
    label = {"float32": "F32", "bfloat16": "BF16"}[dtype.name]
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        size = prod(shape) * dtype.itemsize
        header[name] = {"dtype": label, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    written = dict.fromkeys(shapes, 0)
    done = 0
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, block in blocks:
            file.seek(8 + len(text) + header[name]["data_offsets"][0] + written[name])
            file.write(np.ascontiguousarray(block, dtype).reshape(-1).view(np.uint8).data)
            written[name] += block.size * dtype.itemsize
            done += block.size * dtype.itemsize
            progress(done / end)
    partial.rename(path)


def _independent(shapes: Mapping[str, Shape], seed: int) -> Iterator[tuple[str, Array]]:
    """Yield tensors of independent random numbers; the buffers of a codebook are generated together."""
    for name, shape in shapes.items():
        yield from random_weights({name: shape}, seed).items()


def _sliced(shapes: Mapping[str, Shape], seed: int) -> Iterator[tuple[str, Array]]:
    """Yield norms of independent random numbers, and matrices of slices of the same numbers."""
    random = np.random.default_rng([seed, 1])
    normal = random.standard_normal(_POOL, np.float32)

    @lru_cache(16)
    def scaled(spread: float) -> Array:
        parts = [(normal * np.float32(scale * spread)).astype(_BFLOAT16) for scale in _SCALES]
        return np.concatenate(parts).view(np.uint16)

    for name, shape in shapes.items():
        if len(shape) != 2:
            yield from random_weights({name: shape}, seed).items()
            continue
        slices = np.lib.stride_tricks.sliding_window_view(scaled(deviation(name, shape)), shape[1])
        rows_of_block = max(1, _BLOCK_BYTES // (2 * shape[1]))
        for first in range(0, shape[0], rows_of_block):
            rows = min(rows_of_block, shape[0] - first)
            scales = random.integers(0, len(_SCALES), rows)
            block = slices[scales * _POOL + random.integers(0, _POOL - shape[1], rows)]
            block ^= random.integers(0, 2, (rows, 1), np.uint16) * _SIGN
            yield name, block.view(_BFLOAT16)


def _voice(lm: LmGeometry, random: np.random.Generator) -> dict[str, Array]:
    """Return a voice in the reference's format: embeddings [N - 1, 1, 1, dim], ring of tokens [1, streams, 4]."""
    embeddings = random.standard_normal((VOICE_FRAMES - 1, 1, 1, lm.temporal.dim), np.float32).astype(_BFLOAT16)
    ring = max(lm.delays) + 3
    cache = np.full((1, lm.num_streams, ring), -2, np.int64)
    codes = random.integers(0, lm.card, (ring, 2 * AGENT_CODEBOOKS))
    for column in range(VOICE_FRAMES - ring + 1, VOICE_FRAMES + 1):
        tokens = np.array([lm.text_padding_id, *codes[column % ring]])
        known = np.array(lm.delays) >= column - VOICE_FRAMES + 1
        cache[0, known, column % ring] = tokens[known]
    return {"embeddings": embeddings, "cache": cache}
