from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile

from gateway.cli.build import write_models, write_random
from tests.gateway.cli.conftest import QUESTION, Outcome

Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def other_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """From another checkpoint of the same geometry."""
    folder = tmp_path_factory.mktemp("other")
    write_random(folder / "checkpoint", seed=1)
    write_models(folder / "checkpoint", folder / "models")
    return folder / "models"


def test_tables_have_cost_and_quality(personaplex: Run, tiny_models: Path, tmp_path: Path) -> None:
    stats = tmp_path / "figures.json"
    asked = ("--columns", 3, "--layers", 2, "--json", stats)
    outcome = personaplex("evaluate", tiny_models, "--against", tiny_models, *asked)
    assert (outcome.code, outcome.err) == (0, "")
    heading = "models variant KV disk host RAM per slot device ms/frame RTF hidden cosine"
    lines = [line.split() for line in outcome.out.splitlines()]
    assert " ".join(lines[0]) == heading
    assert lines[1][:3] == lines[2][:3] == ["models", "fp32", "fp32"]
    assert lines[1][-1] == lines[2][-1] == "1.00000"
    assert ["0", "0.0000"] in lines
    assert "3 frames after a prompt of" in outcome.out

    report = json.loads(stats.read_text())
    assert report["parameters"]["audio"] == "synthetic speech, seed 0"
    assert report["parameters"]["voice"] == "NATF0"
    assert report["parameters"]["frames"] == 3
    expected = {
        *("models", "variant", "kv", "disk_bytes", "host_bytes", "slot_bytes", "device_bytes", "frame_ms"),
        *("frame_ms_p95", "stages_ms", "rtf", "diverges_at", "quality", "answers", "weights"),
    }
    assert [set(repository) for repository in report["repositories"]] == [expected] * 2


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 5 frames of the question."""
    pcm, rate = soundfile.read(QUESTION, stop=round(5 * 0.08 * 22_050))
    path = tmp_path_factory.mktemp("recording") / "question.wav"
    soundfile.write(path, pcm, rate)
    return path


@pytest.mark.long
def test_stdout_is_json_only(personaplex: Run, tiny_models: Path, recording: Path) -> None:
    asked = ("--audio", recording, "--voice", "VARM2", "--prompt", "", "--layers", 0, "--json", "-")
    outcome = personaplex("evaluate", tiny_models, "--against", tiny_models, "--threads", 1, *asked)
    report = json.loads(outcome.out)
    assert report["parameters"]["audio"] == str(recording)
    assert (report["parameters"]["voice"], report["parameters"]["prompt"]) == ("VARM2", "")
    assert report["parameters"]["threads"] == 1
    assert report["parameters"]["frames"] == 5


@pytest.mark.long
def test_a_recording_is_followed_by_silence(personaplex: Run, tiny_models: Path, recording: Path) -> None:
    frames = ("--columns", 7, "--layers", 0, "--json", "-")
    outcome = personaplex("evaluate", tiny_models, "--against", tiny_models, "--audio", recording, *frames)
    assert json.loads(outcome.out)["parameters"]["frames"] == 7


def test_another_checkpoint_is_rejected(personaplex: Run, tiny_models: Path, other_models: Path) -> None:
    error = personaplex("evaluate", other_models, "--against", tiny_models).error
    assert f"{other_models} was built from another checkpoint than {tiny_models}: voice" in error


def test_a_folder_that_is_no_repository_is_rejected(personaplex: Run, tiny_models: Path, tmp_path: Path) -> None:
    assert "is not a built repository" in personaplex("evaluate", tmp_path, "--against", tiny_models).error
    assert "is not a built repository" in personaplex("evaluate", tiny_models, "--against", tmp_path).error


def test_a_comparison_without_models_is_rejected(personaplex: Run, tiny_models: Path) -> None:
    assert "MODELS" in personaplex("evaluate", "--against", tiny_models).error
    assert "--against" in personaplex("evaluate", tiny_models).error


def test_an_unknown_voice_is_rejected(personaplex: Run, tiny_models: Path) -> None:
    assert "NOBODY" in personaplex("evaluate", tiny_models, "--against", tiny_models, "--voice", "NOBODY").error


def test_a_file_without_audio_is_rejected(personaplex: Run, tiny_models: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing.wav"
    asked = ("evaluate", tiny_models, "--against", tiny_models, "--audio")
    assert f"cannot read {missing}" in personaplex(*asked, missing).error
    text = tiny_models / "manifest.json"
    assert f"cannot use {text}: expected an audio file" in personaplex(*asked, text).error
