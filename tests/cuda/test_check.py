"""The real CUDA provider places every node of every variant on the device and captures its runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_variant_is_placed_and_captured():
    done = subprocess.run(
        [sys.executable, "-m", "tests.cuda.check"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
