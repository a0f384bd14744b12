"""Folders of the source tree."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
"""Root of the source tree this package belongs to."""

RECORDING = Path(__file__).parent / "data" / "user.flac"
"""What load test users send by default: four questions by Kokoro-82M in 22 s, each with time for an answer."""
