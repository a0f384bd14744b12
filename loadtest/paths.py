"""Folders of the source tree."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
"""Root of the source tree this package belongs to."""

RECORDING = ROOT / "tests" / "data" / "question.wav"
"""The recording that load test users send by default."""
