"""A built repository without models, around the golden tokenizer, and what stands on it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from gateway.engine.conversation import Conversation
from gateway.engine.fake import FakeBackend
from gateway.engine.sampling import SamplingParams
from gateway.engine.scheduler import FrameScheduler
from gateway.manifest import FORMAT, Manifest
from gateway.session.persona import prefix_of_preset
from gateway.session.tokenizer import Tokenizer
from gateway.telemetry.metrics import Metrics
from gateway.voices.registry import VoiceRegistry

GOLDEN = Path(__file__).parents[1] / "golden"
DELAYS = [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1]
DIM = 32
VOICE_FRAMES = {"NATF0": 5, "NATM1": 7}


@pytest.fixture(scope="session")
def golden() -> dict[str, Any]:
    with np.load(GOLDEN / "golden.npz") as arrays:
        return dict(arrays)


def default_manifest() -> dict[str, Any]:
    """manifest.json: the golden geometry with more context."""
    return {
        "format": FORMAT,
        "project_version": "0.1.0",
        "variant": "fp32",
        "slots": 2,
        "sample_rate": 24000,
        "frame_size": 1920,
        "frame_rate": 12.5,
        "codebooks": 8,
        "dim": DIM,
        "card": 2048,
        "text_card": 400,
        "text_padding_id": 3,
        "delays": DELAYS,
        "context": 300,
        "sampling": {
            "audio_temperature": 0.8,
            "audio_top_k": 250,
            "text_temperature": 0.7,
            "text_top_k": 25,
        },
        "tokenizer": "tokenizer.model",
        "voices": {},
        "models": ["mimi_encoder", "temporal", "depformer", "mimi_decoder"],
        "files": {},
    }


def write_models(models: Path, manifest: dict[str, Any]) -> Path:
    """Write MODELS as `personaplex build` would, less the triton folder. Adds the voices to `manifest`."""
    (models / "voices").mkdir(parents=True)
    shutil.copy(GOLDEN / "checkpoint" / "tokenizer_spm_32k_3.model", models / "tokenizer.model")
    random = np.random.default_rng(7)
    for name, frames in VOICE_FRAMES.items():
        path = models / "voices" / f"{name}.safetensors"
        columns = random.integers(0, 2048, (2, 17))
        columns[:, 0] = 3
        columns[1, np.array(DELAYS) == 0] = -1
        save_file(
            {"embeddings": random.standard_normal((frames - 1, DIM)).astype(np.float32), "columns": columns}, path
        )
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        manifest["voices"].setdefault(name, {"file": f"voices/{name}.safetensors", "frames": frames, "sha256": digest})
    (models / "manifest.json").write_text(json.dumps(manifest))
    return models


@pytest.fixture(scope="session")
def shared_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that all tests of this process read and none changes."""
    return write_models(tmp_path_factory.mktemp("shared") / "MODELS", default_manifest())


@pytest.fixture
def manifest_json() -> dict[str, Any]:
    """manifest.json; tests may change it before `write_repository`."""
    return default_manifest()


@pytest.fixture
def write_repository(tmp_path: Path, manifest_json: dict[str, Any]) -> Callable[[], Path]:
    """Return a function that writes MODELS with `manifest_json` and returns its path."""
    return lambda: write_models(tmp_path / "MODELS", manifest_json)


@pytest.fixture
def models(write_repository: Callable[[], Path]) -> Path:
    return write_repository()


@pytest.fixture
def manifest(models: Path) -> Manifest:
    return Manifest.load(models)


@pytest.fixture
def tokenizer(manifest: Manifest) -> Tokenizer:
    return Tokenizer(manifest.tokenizer_path, manifest.text_card, manifest.text_padding_id)


@pytest.fixture
def engine(manifest: Manifest) -> FakeBackend:
    return FakeBackend(manifest)


@pytest.fixture
def scheduler(manifest: Manifest, tokenizer: Tokenizer, engine: FakeBackend) -> FrameScheduler:
    """On the fake backend, with more slots than a test needs."""
    return FrameScheduler(engine, 32, manifest.delays, tokenizer.pieces, Metrics(32))


@pytest.fixture
def converse(manifest: Manifest, tokenizer: Tokenizer, scheduler: FrameScheduler) -> Callable[..., Conversation]:
    """Makes a conversation with NATF0 on the fake backend."""

    def make(text: str = "You are Ana.", seed: int = 1) -> Conversation:
        preset = VoiceRegistry(manifest).require("NATF0").preset
        prefix = prefix_of_preset(preset, tokenizer.encode_prompt(text), manifest)
        params = SamplingParams(seed, audio_temperature=0.8, audio_top_k=250, text_temperature=0.7, text_top_k=25)
        return Conversation(scheduler, prefix, params)

    return make
