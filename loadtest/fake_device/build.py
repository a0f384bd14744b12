"""Write a repository whose models run on the fake device. There are no weights, so it takes a second."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from loadtest.fake_device.timed_session import SIGNATURE, Timing
from model_repository.build import TOKENIZER, manifest_of, write_voices
from model_repository.checkpoint.geometry import AGENT_CODEBOOKS, FRAME_SIZE, Geometry
from model_repository.checkpoint.voices.voice import Voice
from model_repository.staging import MANIFEST
from model_repository.synthetic.tokenizer import train_tiny_tokenizer
from model_repository.triton_config import served_models
from model_repository.variants import Device, variants_of

ENTRY_POINT = "from loadtest.fake_device.triton_model import TritonPythonModel as TritonPythonModel\n"
VARIANT = "bf16"
VOICES = ("NATF0", "NATM0", "VARF0", "VARM0")
VOICE_FRAMES = 51
"""As many as the published voices have at most: a prompt starts with them."""
_TOKENIZER_PIECES = 1600
"""As many as the few sentences of the tiny tokenizer can fill."""


def write_fake_repository(
    out: Path,
    timings: Mapping[str, Timing],
    slots: int,
    *,
    full_windows: bool = True,
    geometry: Geometry | None = None,
) -> Path:
    """Write the repository to the folder `out`, replacing what is there, and return `out`.

    `timings`: by model. `full_windows`: rows take the time of full windows from their first frame on.
    `geometry`: of the published model by default.
    """
    geometry = geometry or Geometry.from_config({})
    lm = geometry.lm
    shutil.rmtree(out, ignore_errors=True)
    pieces = min(lm.text_card, _TOKENIZER_PIECES)
    for model in served_models(geometry, Device.CUDA):
        version = out / "triton" / model.name / "1"
        version.mkdir(parents=True)
        timing = replace(timings[model.name], full_windows=full_windows)
        if model.name == "temporal":
            timing = replace(timing, window=lm.temporal.window)
        (version.parent / "config.pbtxt").write_text(_with_timing(model.pbtxt(slots), timing))
        (version / "model.py").write_text(ENTRY_POINT)
        (version / SIGNATURE).write_text(json.dumps(signatures(geometry, pieces)[model.name], indent=1) + "\n")
    (out / TOKENIZER).write_bytes(train_tiny_tokenizer(pieces))
    voices = write_voices((_voice(name, geometry, index) for index, name in enumerate(VOICES)), out)
    manifest = manifest_of(geometry, slots, variants_of(Device.CUDA)[VARIANT])
    content = {**manifest, "device": "timed", "voices": voices, "files": {}, "weights": {}}
    (out / MANIFEST).write_text(json.dumps(content, indent=1) + "\n")
    return out


def signatures(geometry: Geometry, pieces: int) -> dict[str, Any]:
    """Each model's inputs and outputs without states, as `TimedSession` reads them: those of the graphs for CUDA.

    `pieces`: text tokens are below it.
    """
    lm = geometry.lm
    streams, dim = lm.num_streams, lm.temporal.dim
    row: dict[str, Any] = {"position": ["int64", []]}
    mimi = {**row, "active": ["bool", []]}
    sampler = {"top_k": ["int64", []], "temperature": ["float32", []]}
    codes = {"codes": ["int64", [AGENT_CODEBOOKS], lm.card]}
    return {
        "mimi_encoder": {"inputs": {"pcm": ["float32", [FRAME_SIZE]], **mimi}, "outputs": codes},
        "temporal": {
            "inputs": {
                "columns": ["int64", [1, streams]],
                "embeddings": ["float32", [1, dim]],
                **row,
                "filled": ["int64", []],
                "noise": ["float32", [1]],
                **sampler,
            },
            "outputs": {"hidden": ["float32", [dim], 0], "text_token": ["int64", [], pieces]},
        },
        "depformer": {
            "inputs": {
                "hidden": ["float32", [dim]],
                "text_token": ["int64", []],
                "noise": ["float32", [AGENT_CODEBOOKS, 1]],
                **sampler,
            },
            "outputs": codes,
        },
        "mimi_decoder": {
            "inputs": {"codes": ["int64", [AGENT_CODEBOOKS]], **mimi},
            "outputs": {"pcm": ["float32", [FRAME_SIZE], 0]},
        },
    }


def _with_timing(pbtxt: str, timing: Timing) -> str:
    config = text_format.Parse(pbtxt, pb.ModelConfig())
    for name, value in timing.parameters().items():
        config.parameters[name].string_value = value
    text: str = text_format.MessageToString(config)
    return text


def _voice(name: str, geometry: Geometry, seed: int) -> Voice:
    lm = geometry.lm
    random = np.random.default_rng(seed)
    embeddings = random.standard_normal((VOICE_FRAMES - 1, lm.temporal.dim), np.float32)
    columns = random.integers(0, lm.card, (2, lm.num_streams))
    columns[:, 0] = lm.text_padding_id
    return Voice.from_columns(name, embeddings, columns, lm)
