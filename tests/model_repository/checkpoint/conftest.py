"""The golden checkpoint, as it is and as a copy whose files a test may change."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_repository.checkpoint.folder import Checkpoint

GOLDEN = Path(__file__).parents[2] / "golden"


@pytest.fixture(scope="session")
def golden_checkpoint() -> Checkpoint:
    return Checkpoint.open(GOLDEN / "checkpoint")


@pytest.fixture
def checkpoint_copy(tmp_path: Path) -> Path:
    """A folder of links to the golden checkpoint's files: replace one by unlinking it first."""
    copy = tmp_path / "checkpoint"
    (copy / "voices").mkdir(parents=True)
    for file in (GOLDEN / "checkpoint").rglob("*"):
        if file.is_file():
            (copy / file.relative_to(GOLDEN / "checkpoint")).symlink_to(file)
    return copy
