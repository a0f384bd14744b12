"""Fixtures for the tests of the embedded server: a model repository with one echo model."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gateway.leftovers import gone

__all__ = ["gone", "models"]


@pytest.fixture
def models() -> Path:
    return Path(__file__).parent / "models"
