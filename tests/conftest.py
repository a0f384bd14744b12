"""Fixtures of every package: the golden checkpoint with the reference's outputs, and repositories built from it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

# Several services may run at once, ours or those of tests beside us: none asks for the default port.
os.environ.setdefault("PERSONAPLEX_GRPC_PORT", "0")

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden() -> Mapping[str, NDArray[np.generic]]:
    """The reference's outputs for the golden checkpoint, greedy, float32."""
    with np.load(GOLDEN / "golden.npz") as data:
        return dict(data)


@pytest.fixture(scope="session")
def golden_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden checkpoint, built for 8 conversations."""
    from model_repository.build import build_repository

    models = tmp_path_factory.mktemp("golden") / "models"
    build_repository(GOLDEN / "checkpoint", models, slots=8)
    return models


@pytest.fixture(scope="session")
def cuda_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden checkpoint, built for CUDA at 16 bits."""
    from model_repository.build import build_repository

    models = tmp_path_factory.mktemp("cuda") / "models"
    build_repository(GOLDEN / "checkpoint", models, slots=8, variant="fp16", device="cuda")
    return models


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded default, built for 8 conversations."""
    from model_repository.build import build_repository
    from model_repository.tiny import write_tiny_checkpoint

    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_checkpoint(folder / "checkpoint")
    build_repository(folder / "checkpoint", folder / "models", slots=8)
    return folder / "models"
