from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

from gateway.cli.demo import STAGES
from tests.gateway.cli.conftest import Outcome


def test_the_demo_writes_a_response_and_prints_timings(
    spawn: Callable[..., subprocess.Popen[str]], tmp_path: Path, gone: Callable[[int], list[str]]
) -> None:
    soundfile.write(tmp_path / "short.wav", np.sin(np.arange(8000) / 20) * 0.3, 16000)
    process = spawn("demo", "--input", "short.wav", "--folder", "built", PERSONAPLEX_API_KEYS='["a-key"]')
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    frames = int(re.search(r"frames of 80 ms +(\d+)", out)[1])
    assert soundfile.info(tmp_path / "answer.wav").frames == frames * 1920
    assert re.search(r"real-time factor +0\.\d+", out)
    assert re.search(r"time to first audio +\d+\.\d+ ms", out)
    for stage in STAGES:
        assert re.search(rf"{stage} +\d+\.\d+ ms +\d+\.\d+ ms", out)
    assert "weights are random, so the answer is noise" in out
    assert gone(process.pid) == []


def test_a_missing_recording_is_reported(personaplex: Callable[..., Outcome], tmp_path: Path) -> None:
    assert "cannot read /nowhere.wav" in personaplex("demo", "-i", "/nowhere.wav", "--folder", tmp_path).error
