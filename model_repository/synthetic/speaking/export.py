"""Stage 4, checkpoint: weights in the published layout, from a compact form with the distinct codes only.

The compact form is what is kept, as package data in `model`: `lm.safetensors`, `mimi.safetensors` (float16),
`voices.npz` (codes of each voice prompt), the tokenizer, the configuration and the evaluation set. `expand` makes the
checkpoint: code j of the published vocabulary means what code j modulo `card` means, so that the published constants
are codes of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from model_repository.checkpoint.folder import CONFIG_FILE, EVALUATION_FOLDER, LM_FILE, MIMI_FILE, TOKENIZER_FILE
from model_repository.checkpoint.layout import lm_shapes, mimi_shapes
from model_repository.checkpoint.voices import VOICES_FOLDER
from model_repository.errors import BuildError
from model_repository.synthetic.speaking.config import PUBLISHED_CARD, SpeakingConfig
from model_repository.synthetic.tiny import claim, prompt_of_codes
from model_repository.synthetic.torch_writer import write_torch_tensors

COMPACT_LM, COMPACT_MIMI, VOICES_FILE, RECIPE_FILE = "lm.safetensors", "mimi.safetensors", "voices.npz", "recipe.json"

MODEL = Path(__file__).parent / "model"
"""The trained model, in its compact form."""

QUESTION, QUESTION_TEXT = MODEL / "question.wav", "What is the capital of France?"
"""A recorded question for demonstrations, by a speaker that the model was not trained with."""

HASHES = "SHA256SUMS"

Arrays = Mapping[str, npt.NDArray[Any]]

_TABLE = re.compile(r"(emb|depformer_emb)\.\d+\.weight")
_LOGITS = re.compile(r"linears\.\d+\.weight")


def write_compact(
    folder: Path, lm: Arrays, mimi: Arrays, voices: Arrays, tokenizer: bytes, config: SpeakingConfig
) -> None:
    """Write the compact form. `lm`, `mimi`: tensors by published name; `voices`: codes [N, 8] by preset."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, tensors in ((COMPACT_LM, lm), (COMPACT_MIMI, mimi)):
        halves = {name: np.ascontiguousarray(tensor, np.float16) for name, tensor in tensors.items()}
        safetensors.numpy.save_file(halves, folder / file)
    codes: dict[str, Any] = {name: voice.astype(np.uint8) for name, voice in voices.items()}
    np.savez_compressed(folder / VOICES_FILE, **codes)
    (folder / TOKENIZER_FILE).write_bytes(tokenizer)
    (folder / RECIPE_FILE).write_text(json.dumps(dataclasses.asdict(config), indent=1) + "\n")


def write_speaking_checkpoint(out: Path, force: bool = False) -> None:
    """Write the trained model's checkpoint to the folder `out`.

    Raises `BuildError` if `out` is not empty (unless `force`) or cannot be written, or if the package is damaged.
    """
    try:
        check_hashes(MODEL)
        claim(out, force)
        expand(MODEL, out)
    except OSError as error:
        raise BuildError(f"{out}: cannot be written: {error.strerror or error}") from error


def write_hashes(compact: Path) -> None:
    """Write `SHA256SUMS` of a compact form, as `sha256sum` does."""
    files = sorted(path for path in compact.rglob("*") if path.is_file() and path.name != HASHES)
    (compact / HASHES).write_text("".join(f"{_sha256(path)}  {path.relative_to(compact)}\n" for path in files))


def check_hashes(compact: Path) -> None:
    """Raise `BuildError` if a file of a compact form is missing or is not what its hash says."""
    for line in (compact / HASHES).read_text().splitlines():
        digest, name = line.split("  ", 1)
        path = compact / name
        if not path.is_file() or _sha256(path) != digest:
            raise BuildError(f"{path} is missing or damaged: install the package again")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def expand(compact: Path, out: Path) -> None:
    """Write the checkpoint of a compact form to the folder `out`."""
    config = SpeakingConfig(**json.loads((compact / RECIPE_FILE).read_text()))
    geometry = config.geometry(PUBLISHED_CARD)
    repeats = PUBLISHED_CARD // config.card
    lm = {
        name: _expanded_lm(name, tensor, config.card, repeats)
        for name, tensor in safetensors.numpy.load_file(compact / COMPACT_LM).items()
    }
    for name, shape in lm_shapes(geometry.lm).items():
        # The user's depth steps: they are packed behind the agent's, or absent.
        if name in lm and lm[name].shape != shape:
            lm[name] = np.concatenate([lm[name], np.zeros((shape[0] - len(lm[name]), *shape[1:]), np.float16)])
        lm.setdefault(name, np.zeros(shape, np.float16))
    mimi = {
        name: _expanded_codebook(name, tensor, repeats).astype(np.float32)
        for name, tensor in safetensors.numpy.load_file(compact / COMPACT_MIMI).items()
    }
    for name, shape in mimi_shapes(geometry.mimi).items():
        if name.endswith(("._initialized", ".cluster_usage")):
            mimi[name] = np.ones(shape, np.float32)
    (out / VOICES_FOLDER).mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file(lm, out / LM_FILE)
    safetensors.numpy.save_file(mimi, out / MIMI_FILE)
    (out / TOKENIZER_FILE).write_bytes((compact / TOKENIZER_FILE).read_bytes())
    (out / CONFIG_FILE).write_text(json.dumps(config.sections(PUBLISHED_CARD), indent=1) + "\n")
    with np.load(compact / VOICES_FILE) as voices:
        for name in voices.files:
            prompt = prompt_of_codes(geometry.lm, lm, voices[name].astype(np.int64))
            write_torch_tensors(out / VOICES_FOLDER / f"{name}.pt", prompt)
    if (compact / EVALUATION_FOLDER).is_dir():
        shutil.copytree(compact / EVALUATION_FOLDER, out / EVALUATION_FOLDER, dirs_exist_ok=True)


def _expanded_lm(name: str, tensor: npt.NDArray[Any], card: int, repeats: int) -> npt.NDArray[Any]:
    if _TABLE.fullmatch(name):
        return np.concatenate([np.tile(tensor[:card], (repeats, 1)), tensor[card:]])
    if _LOGITS.fullmatch(name):
        return np.tile(tensor, (repeats, 1))
    return tensor


def _expanded_codebook(name: str, tensor: npt.NDArray[Any], repeats: int) -> npt.NDArray[Any]:
    return np.tile(tensor, (repeats, 1)) if name.endswith("._codebook.embedding_sum") else tensor
