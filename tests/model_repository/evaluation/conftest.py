"""Two small repositories of one geometry, the second with one layer's weights changed, and what both are asked."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from model_repository.build import build_repository
from model_repository.checkpoint.folder import LM_FILE
from model_repository.evaluation.conversation import Prompt
from model_repository.evaluation.repository import Repository
from model_repository.evaluation.speech import synthetic_speech
from model_repository.synthetic.tiny import write_tiny_checkpoint
from tests.conftest import BuiltOnce

LAYERS = 3
CHANGED = 1
FRAMES = 12


@pytest.fixture(scope="session")
def pair(built_once: BuiltOnce) -> tuple[Repository, Repository]:
    """A repository, and one from the same checkpoint with 5 % noise on a feed-forward matrix of layer `CHANGED`."""
    folder = built_once("pair", _build_pair)
    return Repository.open(folder / "right-models"), Repository.open(folder / "noisy-models")


@pytest.fixture(scope="session")
def pair_for_cuda(pair: tuple[Repository, Repository], built_once: BuiltOnce) -> Path:
    """The first of the pair, built for CUDA."""
    checkpoint = pair[0].folder.parent / "right"
    built = built_once("pair-cuda", lambda path: build_repository(checkpoint, path / "cuda", slots=1, device="cuda"))
    return built / "cuda"


def _build_pair(folder: Path) -> None:
    write_tiny_checkpoint(folder / "right", config={"lm": {"num_layers": LAYERS}}, lm_dtype="float32")
    shutil.copytree(folder / "right", folder / "noisy")
    tensors = load_file(folder / "right" / LM_FILE)
    name = f"transformer.layers.{CHANGED}.gating.linear_out.weight"
    noise = np.random.default_rng(0).standard_normal(tensors[name].shape)
    tensors[name] = (tensors[name] * (1 + 0.05 * noise)).astype(np.float32)
    save_file(tensors, folder / "noisy" / LM_FILE)
    for kind in ("right", "noisy"):
        build_repository(folder / kind, folder / f"{kind}-models", slots=2)


@pytest.fixture(scope="session")
def prompt(pair: tuple[Repository, Repository]) -> Prompt:
    """A preset voice and no text."""
    voice = load_file(pair[0].folder / "voices" / "NATF0.safetensors")
    return Prompt(voice["embeddings"], voice["columns"][:1], voice["columns"][1])


@pytest.fixture(scope="session")
def frames() -> NDArray[np.float32]:
    return synthetic_speech(FRAMES * 0.08, 24_000).reshape(FRAMES, 1920)
