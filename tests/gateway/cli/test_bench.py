"""`personaplex bench` writes what the evaluators of benchmarks read, with the real server or one that echoes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pytest
import soundfile

from gateway.cli.benchmark import CONVERSATION_PROMPT
from gateway.cli.full_duplex_bench import INTERRUPTION_PROMPT, find_samples
from gateway.cli.service import Service
from gateway.client import Answer, AsyncClient, ClientError, RespondParams
from tests.gateway.cli.conftest import Outcome

Run = Callable[..., Outcome]

SAMPLES = {
    "candor_pause_handling/1": (1.0, 16_000, 1),
    "candor_pause_handling/2": (2.34, 44_100, 2),
    "synthetic_user_interruption/1": (3.0, 24_000, 1),
}
"""Seconds, rate and channels."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "v1_0"
    for name, (seconds, rate, channels) in SAMPLES.items():
        (folder / name).mkdir(parents=True)
        noise = np.random.default_rng(0).standard_normal((round(seconds * rate), channels)) * 0.05
        soundfile.write(folder / name / "input.wav", noise, rate)
    return folder


def output(root: Path, name: str, file: str = "output.wav") -> tuple[np.ndarray, int]:
    pcm, rate = soundfile.read(root / name / file)
    assert soundfile.info(root / name / file).subtype == "PCM_16"
    assert pcm.ndim == 1
    return pcm, rate


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A server that answers each recording with itself; the fields it was sent."""
    asked: list[dict[str, Any]] = []

    async def respond(_: AsyncClient, audio: bytes, **params: Unpack[RespondParams]) -> Answer:
        asked.append(dict(params))
        pcm, rate = soundfile.read(io.BytesIO(audio), dtype="float32")
        assert (rate, len(pcm)) == (24_000, 1920 * params["max_steps"])
        answer = io.BytesIO()
        soundfile.write(answer, pcm, rate, "PCM_16", format="WAV")
        return Answer(answer.getvalue(), "as you say", params["max_steps"], rate, "NATF0", 1, {})

    monkeypatch.setattr(AsyncClient, "respond", respond)
    return asked


@pytest.mark.parametrize("rate", [24_000, 16_000])
def test_every_output_is_as_long_as_its_input(personaplex: Run, service: Service, root: Path, rate: int) -> None:
    outcome = personaplex("bench", "fdb", root, "--server", service.url, "--rate", rate, "--seed", 3)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("3 of 3 samples written")
    described = json.loads((root.parent / "v1_0.fdb_run.json").read_text())
    for name, (seconds, _, _) in SAMPLES.items():
        pcm, written = output(root, name)
        assert (len(pcm), written) == (round(seconds * rate), rate)
        file = described["files"][f"{name}/input.wav"]
        assert file["seconds"] == pytest.approx(seconds, abs=1e-3)
        assert file["rms"] == pytest.approx(np.sqrt((pcm**2).mean()), abs=1e-4)
    assert (described["rate"], described["seed"], described["mode"]) == (rate, 3, "respond")
    assert {path.name for path in root.rglob("*") if path.is_file()} == {"input.wav", "output.wav"}


def test_a_live_conversation_gives_the_same_outputs(personaplex: Run, service: Service, root: Path) -> None:
    common = ("--server", service.url, "--seed", 3, "--again")
    assert personaplex("bench", "fdb", root, *common).code == 0
    recorded = {name: output(root, name)[0] for name in SAMPLES}
    assert personaplex("bench", "fdb", root, *common, "--mode", "converse").code == 0
    for name, pcm in recorded.items():
        assert pcm.any()
        np.testing.assert_array_equal(output(root, name)[0], pcm)


@pytest.mark.parametrize(("arguments", "late"), [((), 0.0), (("--shift",), 0.08)])
def test_outputs_have_the_clock_of_the_input(
    personaplex: Run, echo: list[dict[str, Any]], root: Path, arguments: tuple[str, ...], late: float
) -> None:
    folder = root / "candor_pause_handling" / "1"
    click = np.zeros(16_000)
    click[round(0.4 * 16_000)] = 0.9
    soundfile.write(folder / "input.wav", click, 16_000)
    assert personaplex("bench", "fdb", root, *arguments).code == 0
    pcm, rate = output(root, "candor_pause_handling/1")
    assert np.abs(pcm).argmax() / rate == pytest.approx(0.4 + late, abs=1e-4)


def test_each_task_has_its_published_prompt(personaplex: Run, echo: list[dict[str, Any]], root: Path) -> None:
    assert personaplex("bench", "fdb", root, "--jobs", 1, "--voice", "NATF2").code == 0
    assert [fields["text_prompt"] for fields in echo] == [CONVERSATION_PROMPT, CONVERSATION_PROMPT, INTERRUPTION_PROMPT]
    assert {fields["voice"] for fields in echo} == {"NATF2"}
    listed = personaplex("bench", "fdb", root, "--dry-run", "--task", "interruption").out.splitlines()
    assert listed == [f"synthetic_user_interruption/1/input.wav\tsynthetic_user_interruption\t{INTERRUPTION_PROMPT}"]
    assert {sample.task for sample in find_samples(root / "candor_pause_handling")} == {"candor_pause_handling"}


def test_clean_inputs_have_outputs_of_their_own(personaplex: Run, echo: list[dict[str, Any]], root: Path) -> None:
    folder = root / "candor_pause_handling" / "2"
    soundfile.write(folder / "clean_input.wav", np.zeros(8000), 16_000)
    assert personaplex("bench", "fdb", root, "--clean").out.startswith("1 of 1 samples")
    assert len(output(root, "candor_pause_handling/2", "clean_output.wav")[0]) == 12_000
    assert not (folder / "output.wav").exists()


def test_a_run_goes_on_where_it_was(
    personaplex: Run, echo: list[dict[str, Any]], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering = AsyncClient.respond

    async def full(client: AsyncClient, audio: bytes, **params: Unpack[RespondParams]) -> Answer:
        if len(echo) == 2:
            raise ClientError("503: every slot is taken")
        return await answering(client, audio, **params)

    monkeypatch.setattr(AsyncClient, "respond", full)
    outcome = personaplex("bench", "fdb", root, "--jobs", 1)
    assert outcome.code == 2
    assert "input.wav: 503: every slot is taken" in outcome.err
    assert outcome.err.splitlines()[-1].endswith("1 samples failed; run the command again for them")
    monkeypatch.setattr(AsyncClient, "respond", answering)
    outcome = personaplex("bench", "fdb", root, "--jobs", 1)
    assert (outcome.code, len(echo)) == (0, 3)
    assert "2 samples have an output already" in outcome.err
    assert len(json.loads((root.parent / "v1_0.fdb_run.json").read_text())["files"]) == 3


def test_bad_input_is_named(personaplex: Run, echo: list[dict[str, Any]], root: Path, tmp_path: Path) -> None:
    assert "expected folders with input.wav" in personaplex("bench", "fdb", tmp_path / "none").error
    assert "--rate: expected 24000 or 16000, got 8000" in personaplex("bench", "fdb", root, "--rate", 8000).error
    assert "--mode: expected respond or converse" in personaplex("bench", "fdb", root, "--mode", "live").error
    (root / "candor_pause_handling" / "1" / "input.wav").write_bytes(b"noise")
    outcome = personaplex("bench", "fdb", root)
    assert outcome.code == 2
    assert "candor_pause_handling/1/input.wav: cannot read" in outcome.err
    assert outcome.out.startswith("2 of 3 samples written")


@pytest.fixture
def conversations(tmp_path: Path) -> Path:
    """Two conversations, as TurnBench exports them and as it delivers them."""
    folder = tmp_path / "dev"
    for name, kind, rate in (("12", "flac", 48_000), ("7", "wav", 44_100)):
        (folder / name).mkdir(parents=True)
        for speaker in (1, 2):
            pcm = np.zeros(2 * rate)
            pcm[speaker * rate // 2] = 0.9
            soundfile.write(folder / name / f"speaker_{speaker}_audio.{kind}", pcm, rate)
        soundfile.write(folder / name / "combined_audio.wav", np.zeros(rate), rate)
    return folder


def test_turnbench_records_the_answer_to_each_speaker(
    personaplex: Run, echo: list[dict[str, Any]], conversations: Path, tmp_path: Path
) -> None:
    recordings = tmp_path / "recordings"
    outcome = personaplex("bench", "turnbench", conversations, recordings, "--mode", "respond", "--jobs", 1)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("4 of 4 samples written")
    for name in ("12", "7"):
        for speaker in (1, 2):
            written = recordings / name / f"speaker_{speaker}" / "output.flac"
            pcm, rate = soundfile.read(written)
            assert (soundfile.info(written).format, rate, pcm.shape) == ("FLAC", 24_000, (48_000,))
            assert np.abs(pcm).argmax() / rate == pytest.approx(speaker / 2, abs=1e-4)
    assert {fields["text_prompt"] for fields in echo} == {CONVERSATION_PROMPT}
    described = json.loads((tmp_path / "recordings.turnbench_run.json").read_text())
    assert described["files"]["7/speaker_1_audio.wav"]["seconds"] == 2
    again = personaplex("bench", "turnbench", conversations, recordings, "--mode", "respond")
    assert "4 samples have an output already" in again.err
    assert len(echo) == 4


def test_turnbench_holds_live_conversations(
    personaplex: Run, service: Service, conversations: Path, tmp_path: Path
) -> None:
    recordings = tmp_path / "recordings"
    assert personaplex("bench", "turnbench", conversations, recordings, "--server", service.url).code == 0
    for name in ("12", "7"):
        for speaker in (1, 2):
            pcm, _ = soundfile.read(recordings / name / f"speaker_{speaker}" / "output.flac")
            assert len(pcm) == 48_000
            assert pcm.any()
    assert "expected folders with speaker_1_audio.flac" in personaplex("bench", "turnbench", tmp_path, recordings).error
