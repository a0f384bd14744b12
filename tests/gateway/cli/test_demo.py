from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import soundfile

from gateway.cli.demo import STAGES
from model_repository.evaluation.recognizer import recognize, words
from tests.gateway.cli.conftest import Outcome


def test_the_demo_asks_its_question_and_the_answer_can_be_understood(
    spawn: Callable[..., subprocess.Popen[str]], tmp_path: Path, gone: Callable[[int], list[str]]
) -> None:
    process = spawn("demo", "--folder", "built", PERSONAPLEX_API_KEYS='["a-key"]')
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    frames = int(re.search(r"frames of 80 ms +(\d+)", out)[1])
    assert soundfile.info(tmp_path / "answer.wav").frames == frames * 1920
    assert re.search(r"real-time factor +0\.\d+", out)
    assert re.search(r"time to first audio +\d+\.\d+ ms", out)
    for stage in STAGES:
        assert re.search(rf"{stage} +\d+\.\d+ ms +\d+\.\d+ ms", out)
    assert "question: What is the capital of France?" in out
    assert "answer:   The capital of France is Paris." in out
    sound, rate = soundfile.read(tmp_path / "answer.wav", dtype="float32")
    assert rate == 24_000
    heard = words(recognize(sound))
    assert len({"capital", "france", "paris"} & set(heard)) >= 2, heard
    assert gone(process.pid) == []


def test_a_missing_recording_is_reported(personaplex: Callable[..., Outcome], tmp_path: Path) -> None:
    assert "cannot read /nowhere.wav" in personaplex("demo", "-i", "/nowhere.wav", "--folder", tmp_path).error
