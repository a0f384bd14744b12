"""The voice commands on a built repository: recordings and published files, errors in one line."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from safetensors.numpy import save_file

from gateway.manifest import Manifest
from gateway.voices.preset import VoicePreset
from gateway.voices.registry import VoiceRegistry
from model_repository.checkpoint.weights.torch_file import read_torch_tensors
from tests.gateway.cli.conftest import QUESTION, ROOT, Outcome

Run = Callable[..., Outcome]
PUBLISHED = ROOT / "tests" / "golden" / "checkpoint" / "voices" / "NATF0.pt"


@pytest.fixture
def models(golden_models: Path, tmp_path: Path) -> Path:
    """A repository with one voice, NATF0, and a separate folder of voices."""
    own = tmp_path / "models"
    (own / "voices").mkdir(parents=True)
    for name in ("manifest.json", "tokenizer.model", "triton"):
        (own / name).symlink_to(golden_models / name)
    (own / "voices" / "NATF0.safetensors").write_bytes((golden_models / "voices" / "NATF0.safetensors").read_bytes())
    return own


def preset(models: Path, name: str) -> VoicePreset:
    return VoiceRegistry(Manifest.load(models)).require(name).preset


def same(one: VoicePreset, other: VoicePreset) -> bool:
    return np.array_equal(one.embeddings, other.embeddings) and np.array_equal(one.columns, other.columns)


def test_a_recording_becomes_a_voice_of_tokens(personaplex: Run, models: Path):
    outcome = personaplex("voice", "add", models, "ANA", QUESTION)
    assert outcome == Outcome(0, "", f"ANA: 6.4 s of voice from a recording, added to {models}\n")
    voice = preset(models, "ANA")
    assert voice.embeddings.shape == (0, 32)
    # 6.34 s are 80 frames; the last one is incomplete.
    assert voice.columns.shape == (81, 17)


def test_a_voice_taken_from_another_repository_is_the_same(personaplex: Run, models: Path, tmp_path: Path):
    personaplex("voice", "add", models, "ANA", QUESTION)
    file = (models / "voices" / "ANA.safetensors").rename(tmp_path / "elsewhere.safetensors")
    assert personaplex("voice", "add", models, "BEA", file).code == 0
    assert preset(models, "BEA").columns.shape == (81, 17)


def in_published_form(form: str, folder: Path) -> Path:
    """The golden checkpoint's voice, in a published format."""
    tensors = read_torch_tensors(PUBLISHED, "voice")
    embeddings, cache = tensors["embeddings"].astype("<f4"), tensors["cache"].astype("<i8")
    rows, dim = embeddings.reshape(len(embeddings), -1).shape
    file = folder / f"NATF0{form}"
    if form == ".pt":
        return PUBLISHED
    if form == ".safetensors":
        save_file({"embeddings": embeddings, "cache": cache}, file)
    elif form == ".bin":
        header = struct.pack("<4I", 0x50506558, 1, *cache.shape[1:])
        file.write_bytes(header + cache.tobytes() + struct.pack("<2I", rows, dim) + embeddings.tobytes())
    elif form == ".tgz":
        with tarfile.open(file, "w:gz") as tar:
            for name in ("NATF0", "NATM0"):
                tar.add(PUBLISHED, f"voices/{name}.pt")
    else:
        (folder / "NATF0.embeddings.bin").write_bytes(embeddings.tobytes())
        described = {"num_frames": rows, "dim": dim, "cache": cache[0].tolist()}
        (folder / "NATF0.cache.json").write_text(json.dumps(described))
    return file


@pytest.mark.parametrize("form", [".pt", ".safetensors", ".bin", ".embeddings.bin", ".cache.json"])
def test_an_added_published_voice_equals_the_built_one(personaplex: Run, models: Path, tmp_path: Path, form: str):
    outcome = personaplex("voice", "add", models, "ANA", in_published_form(form, tmp_path))
    assert (outcome.code, "s of voice from a voice file" in outcome.err) == (0, True)
    assert same(preset(models, "ANA"), preset(models, "NATF0"))


def test_the_name_selects_a_voice_of_an_archive(personaplex: Run, models: Path, tmp_path: Path):
    archive = in_published_form(".tgz", tmp_path)
    assert "it has NATF0, NATM0" in personaplex("voice", "add", models, "ANA", archive).error
    assert personaplex("voice", "add", models, "NATM0", archive).code == 0
    assert same(preset(models, "NATM0"), preset(models, "NATF0"))


def wav(folder: Path, pcm: Any, rate: int = 24000, subtype: str = "PCM_16") -> Path:
    soundfile.write(folder / "recording.wav", np.asarray(pcm), rate, subtype=subtype)
    return folder / "recording.wav"


NOISE = np.random.default_rng(5).normal(0, 0.05, 31 * 24000)


@pytest.mark.parametrize(
    ("pcm", "error_text"),
    [
        (NOISE[: 2 * 24000], "expected 3 to 30 s of voice, got 2 s"),
        (NOISE, "expected at most 30 s of audio, got more"),
        (np.zeros(5 * 24000), "expected a voice, got silence: 0.0 s are louder than -60 dBFS"),
        (np.clip(20 * NOISE[: 5 * 24000], -1, 1), "expected an undistorted voice, got a clipped one: "),
    ],
    ids=["short", "long", "silent", "clipped"],
)
def test_an_unusable_recording_is_rejected_with_the_reason(
    personaplex: Run, models: Path, tmp_path: Path, pcm: np.ndarray, error_text: str
):
    error = personaplex("voice", "add", models, "ANA", wav(tmp_path, pcm)).error
    assert error.startswith(f"{tmp_path}/recording.wav: {error_text}")
    assert [file.name for file in (models / "voices").iterdir()] == ["NATF0.safetensors"]


def test_a_file_without_audio_is_rejected(personaplex: Run, models: Path, tmp_path: Path):
    text = tmp_path / "recording.wav"
    text.write_text("not a sound")
    assert "expected an audio file libsndfile reads" in personaplex("voice", "add", models, "ANA", text).error
    text.write_bytes(b"")
    assert "got no bytes" in personaplex("voice", "add", models, "ANA", text).error
    assert "no such file" in personaplex("voice", "add", models, "ANA", tmp_path / "none.wav").error
    assert "no such file" in personaplex("voice", "add", models, "ANA", tmp_path).error


def test_a_voice_file_of_another_model_is_rejected(personaplex: Run, models: Path, tmp_path: Path):
    file = tmp_path / "wide.safetensors"
    save_file({"embeddings": np.zeros((12, 1, 1, 64), np.float32), "cache": np.zeros((1, 17, 4), np.int64)}, file)
    error = personaplex("voice", "add", models, "ANA", file).error
    assert error.startswith(str(file))
    assert "32], got [12, 1, 1, 64]" in error


@pytest.mark.parametrize(
    ("name", "error_text"),
    [
        ("NATF0", "there is a voice named NATF0 already; --force replaces it"),
        ("../NATF0", "voice name '../NATF0' must be 1 to 64 letters"),
        ("recording", "voice name 'recording' is reserved for the voice of a recording in a request"),
    ],
)
def test_an_invalid_name_is_rejected_before_the_file_is_read(
    personaplex: Run, models: Path, name: str, error_text: str
):
    assert personaplex("voice", "add", models, name, "no-such-file.wav").error.startswith(error_text)


def test_force_replaces_a_voice(personaplex: Run, models: Path):
    assert personaplex("voice", "add", models, "NATF0", QUESTION, "--force").code == 0
    assert preset(models, "NATF0").frames == 80


def test_a_read_only_folder_is_an_error(personaplex: Run, models: Path):
    (models / "voices" / "NATF0.safetensors").rename(models / "NATF0.safetensors")
    (models / "voices").rmdir()
    (models / "voices").write_text("a file where the folder was")
    assert f"{models}/voices" in personaplex("voice", "add", models, "ANA", QUESTION).error


@pytest.mark.parametrize("command", [("add", "ANA", QUESTION), ("list",), ("remove", "ANA")])
def test_a_folder_that_is_no_repository_is_rejected(personaplex: Run, tmp_path: Path, command: tuple[Any, ...]):
    name, *rest = command
    assert "is not a built repository" in personaplex("voice", name, tmp_path, *rest).error


@pytest.mark.parametrize("content", [None, b"not a graph"])
def test_models_whose_encoder_is_missing_or_broken_are_rejected(personaplex: Run, models: Path, content: bytes | None):
    (models / "triton").unlink()
    if content is not None:
        (models / "triton" / "mimi_encoder" / "1").mkdir(parents=True)
        (models / "triton" / "mimi_encoder" / "1" / "model.onnx").write_bytes(content)
    error = personaplex("voice", "add", models, "ANA", QUESTION).error
    assert "mimi_encoder/1/model.onnx" in error


def test_the_list_shows_duration_and_origin(personaplex: Run, models: Path):
    personaplex("voice", "add", models, "ANA-MARIA", QUESTION)
    personaplex("voice", "add", models, "B", PUBLISHED)
    (models / "voices" / "C.safetensors").write_bytes(b"")
    outcome = personaplex("voice", "list", models)
    assert outcome.out.splitlines() == [
        "NATF0        1.0 s  built-in",
        "ANA-MARIA    6.4 s  added, from a recording",
        "B            1.0 s  added, from a voice file",
    ]
    assert "invalid: voices/C.safetensors cannot be read" in outcome.err
    listed = json.loads(personaplex("voice", "list", models, "--json").out)
    assert listed["voices"][:2] == [
        {"name": "NATF0", "seconds": 1.04, "frames": 13, "origin": "built-in", "source": None},
        {"name": "ANA-MARIA", "seconds": 6.4, "frames": 80, "origin": "added", "source": "recording"},
    ]
    assert [voice["name"] for voice in listed["broken"]] == ["C"]


def test_added_voices_are_removed_and_built_in_ones_are_not(personaplex: Run, models: Path):
    personaplex("voice", "add", models, "ANA", QUESTION)
    assert "--force" in personaplex("voice", "remove", models, "NATF0").error
    assert personaplex("voice", "remove", models, "ANA") == Outcome(0, "", f"ANA: removed from {models}\n")
    assert "no voice named 'ANA'; there are: NATF0" in personaplex("voice", "remove", models, "ANA").error
    assert "NATF0 is the only voice" in personaplex("voice", "remove", models, "NATF0", "--force").error


def test_concurrent_adds_all_succeed(spawn: Callable[..., subprocess.Popen[str]], models: Path):
    names = ["ANA", "BEA", "ANA"]
    running = [spawn("voice", "add", models, name, PUBLISHED) for name in names]
    codes = [process.wait() for process in running]
    assert sorted(codes) == [0, 0, 2]
    assert list(VoiceRegistry(Manifest.load(models)).available()) == ["NATF0", "ANA", "BEA"]


def test_other_audio_formats_are_read(personaplex: Run, models: Path, tmp_path: Path):
    pcm, rate = soundfile.read(QUESTION)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack([pcm, np.zeros_like(pcm)], axis=1), rate, format="FLAC")
    (tmp_path / "recording.flac").write_bytes(buffer.getvalue())
    personaplex("voice", "add", models, "WAV", QUESTION)
    personaplex("voice", "add", models, "FLAC", tmp_path / "recording.flac")
    assert same(preset(models, "WAV"), preset(models, "FLAC"))
