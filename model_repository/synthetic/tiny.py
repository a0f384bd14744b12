"""Writes a small checkpoint of random weights, with the files, tensor names and voices of the published one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import safetensors.numpy

from model_repository.checkpoint.folder import CONFIG_FILE, LM_FILE, MIMI_FILE, TOKENIZER_FILE
from model_repository.checkpoint.geometry import AGENT_CODEBOOKS, Geometry, LmGeometry
from model_repository.checkpoint.layout import lm_shapes, mimi_shapes
from model_repository.checkpoint.voices import VOICES_FOLDER
from model_repository.checkpoint.weights.tensors import Shape
from model_repository.errors import BuildError
from model_repository.prompt_codes import SINE
from model_repository.synthetic.random_weights import random_weights
from model_repository.synthetic.tokenizer import train_tiny_tokenizer
from model_repository.synthetic.torch_writer import write_torch_tensors

VOICE_NAMES = tuple(
    f"{family}{index}"
    for family, count in (("NATF", 4), ("NATM", 4), ("VARF", 5), ("VARM", 5))
    for index in range(count)
)
"""The published voices."""

TINY_CONFIG: Mapping[str, Mapping[str, Any]] = {
    "lm": {
        "dim": 64,
        "num_layers": 2,
        "num_heads": 4,
        "context": 512,
        "text_card": 512,
        "depformer_dim": 32,
        "depformer_num_layers": 2,
        "depformer_num_heads": 2,
        "depformer_dim_feedforward": 132,
    },
    "seanet": {"dimension": 32, "n_filters": 1, "compress": 1},
    "quantizer": {"dimension": 16, "n_q": 8},
    "mimi_transformer": {"d_model": 32, "num_layers": 2, "num_heads": 2, "dim_feedforward": 64, "context": 50},
}
"""`config.json` of the tiny checkpoint: what is not as published. About 5 million parameters, a frame in a few
milliseconds on one core."""

_DTYPES: Mapping[str, np.dtype[Any]] = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
}
_UNGENERATED = -2
"""What the reference's token ring holds before anything is written to it."""

MakeWeights = Callable[[Mapping[str, Shape], int], Mapping[str, npt.NDArray[np.float32]]]


def write_tiny_checkpoint(
    out: Path,
    seed: int = 0,
    force: bool = False,
    config: Mapping[str, Mapping[str, Any]] | None = None,
    lm_dtype: str = "bfloat16",
    lm_weights: MakeWeights = random_weights,
) -> None:
    """Writes a checkpoint of random weights to the folder `out`, deterministic for a seed to the byte.

    `config` overrides single values of `TINY_CONFIG`, section by section; `lm_dtype` is the dtype in which the
    language model and the voices are stored ("bfloat16", "float16" or "float32"; Mimi is always float32). `lm_weights`
    makes the language model's weights from their shapes and the seed. Raises
    `BuildError` if `out` is not empty (unless `force`, which writes over what is there), cannot be written or a
    value cannot be, and `CheckpointError` for a geometry that cannot be.
    """
    if lm_dtype not in _DTYPES:
        raise BuildError(f"lm_dtype must be one of {', '.join(_DTYPES)}, got {lm_dtype!r}")
    if seed < 0:
        raise BuildError(f"seed must not be negative, got {seed}")
    unknown = set(config or {}) - set(TINY_CONFIG)
    if unknown:
        raise BuildError(f"config has no section {', '.join(sorted(unknown))}; it has {', '.join(TINY_CONFIG)}")
    sections = {name: {**values, **(config or {}).get(name, {})} for name, values in TINY_CONFIG.items()}
    geometry = Geometry.from_config(sections)
    if geometry.lm.card <= max(SINE):
        raise BuildError(f"lm.card must be above {max(SINE)}, the largest of the reference's constant codes")
    tokenizer = train_tiny_tokenizer(geometry.lm.text_card)
    try:
        claim(out, force)
        (out / TOKENIZER_FILE).write_bytes(tokenizer)
        lm = {
            name: weight.astype(_DTYPES[lm_dtype]) for name, weight in lm_weights(lm_shapes(geometry.lm), seed).items()
        }
        safetensors.numpy.save_file(lm, out / LM_FILE)
        safetensors.numpy.save_file(random_weights(mimi_shapes(geometry.mimi), seed), out / MIMI_FILE)
        (out / VOICES_FOLDER).mkdir(exist_ok=True)
        for index, name in enumerate(VOICE_NAMES):
            generator = np.random.default_rng([seed, index])
            frames = int(generator.integers(10, 21))
            codes = generator.integers(0, geometry.lm.card, (frames, AGENT_CODEBOOKS))
            write_torch_tensors(out / VOICES_FOLDER / f"{name}.pt", prompt_of_codes(geometry.lm, lm, codes))
        (out / CONFIG_FILE).write_text(json.dumps(sections, indent=1) + "\n")
    except OSError as error:
        raise BuildError(f"{out}: cannot be written: {error.strerror or error}") from error


def claim(out: Path, force: bool) -> None:
    """Make the folder `out` for a checkpoint. Raises BuildError if it is a file, or not empty without `force`."""
    if out.exists() and not out.is_dir():
        raise BuildError(f"{out} is a file; give a folder")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise BuildError(f"{out} is not empty; give another folder, or --force to write over what is there")
    out.mkdir(parents=True, exist_ok=True)


def prompt_of_codes(
    lm: LmGeometry, weights: Mapping[str, npt.NDArray[Any]], codes: npt.NDArray[np.int64]
) -> dict[str, npt.NDArray[Any]]:
    """What the reference saves after a voice prompt of codes [N, 8].

    `embeddings` [N-1, 1, 1, dim]: the summed embeddings of columns 0 … N-2, in the weights' dtype with a rounding
    after each addition; `cache` [1, 17, 4] int64: its ring of tokens, column p at p modulo 4.
    """
    delays = np.array(lm.delays)
    columns = np.full((len(codes) + 1, lm.num_streams), _UNGENERATED, np.int64)
    for frame, agent in enumerate(codes):
        columns[frame + delays, np.arange(lm.num_streams)] = [lm.text_padding_id, *agent, *SINE]
    initial = np.array([lm.text_card, *[lm.card] * (lm.num_streams - 1)])
    columns[0] = initial
    columns[1, delays == 1] = initial[delays == 1]

    embeddings = weights["emb.0.weight"][columns[:-2, 1]]
    for stream in range(2, lm.num_streams):
        embeddings = embeddings + weights[f"emb.{stream - 1}.weight"][columns[:-2, stream]]
    embeddings = embeddings + weights["text_emb.weight"][columns[:-2, 0]]

    cache = np.full((1, lm.num_streams, max(lm.delays) + 3), _UNGENERATED, np.int64)
    for position, column in enumerate(columns):
        written = column != _UNGENERATED
        cache[0, written, position % cache.shape[2]] = column[written]
    return {"embeddings": embeddings[:, None, None], "cache": cache}
