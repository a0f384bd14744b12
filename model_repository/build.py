"""From a checkpoint to a model repository on disk: graphs, Triton configs, voices, tokenizer, and last the manifest.

    MODELS/
      manifest.json     what the gateway reads; its presence says that the rest is complete
      tokenizer.model
      voices/NAME.safetensors
      triton/MODEL/     config.pbtxt, 1/model.py, 1/model.onnx, 1/model.onnx.data

Everything is written to a folder beside MODELS, which takes MODELS' name only when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from model_repository.checkpoint.folder import EVALUATION_FOLDER, Checkpoint
from model_repository.checkpoint.geometry import AGENT_CODEBOOKS, SAMPLE_RATE, Geometry
from model_repository.checkpoint.voices.voice import Voice
from model_repository.errors import BuildError
from model_repository.graphs import graphs_of
from model_repository.staging import MANIFEST, check_place, replacing
from model_repository.temporal.graph import max_text_top_k
from model_repository.triton_config import ENTRY_POINT, served_models
from model_repository.variants import CachePrecision, Device, Variant, variants_of

FORMAT = 4
"""Version of what is built: of the manifest, the graphs and their parameters, and the code that Triton loads."""

TOKENIZER = "tokenizer.model"

SAMPLING_DEFAULTS = {"audio_temperature": 0.8, "audio_top_k": 250, "text_temperature": 0.7, "text_top_k": 25}
"""The reference's defaults."""

_CALIBRATION_SHARE = 0.3
"""Of a build's progress, if there is calibration."""

_VOICES_AT = 0.9
"""Progress when all weights are written."""

KV_PRECISIONS = (CachePrecision.FP32, CachePrecision.FP16, CachePrecision.INT8)
"""That can be chosen for a CPU. On CUDA it is the variant's or int8."""

Progress = Callable[[str, float], None]
"""Called with what is being done and the fraction of the whole that is done."""


def build_repository(
    checkpoint: Path,
    models: Path,
    *,
    slots: int = 8,
    variant: str = "fp32",
    kv: str | None = None,
    device: str = "cpu",
    force: bool = False,
    progress: Progress | None = None,
) -> list[str]:
    """Build the checkpoint at `checkpoint` into the repository `models`, for `slots` conversations at once.

    `variant` is a name in `variants_of(device)`, `kv` one of `KV_PRECISIONS` (by default the variant's). An earlier
    repository at `models` is replaced, any other non-empty folder only with `force`. Voices that were added to the
    earlier one stay if the checkpoint is the same; else their names are the answer. Raises `CheckpointError` for a
    checkpoint that cannot be read and `BuildError` for a place that cannot be written.
    """
    recipe = _recipe(variant, kv, device)
    if not 1 <= slots <= 1024:
        raise BuildError(f"slots must be from 1 to 1024, got {slots}")
    check_place(models, checkpoint, force)
    report = progress or (lambda _what, _done: None)
    report("reading the checkpoint", 0.0)
    source = Checkpoint.open(checkpoint)
    with replacing(models) as replacement:
        _write(source, replacement.folder, slots, recipe, report)
    report("done", 1.0)
    return replacement.dropped


def _recipe(variant: str, kv: str | None, device: str) -> Variant:
    if device not in list(Device):
        raise BuildError(f"unknown device {device!r}; expected one of {', '.join(Device)}")
    known = variants_of(Device(device))
    if variant not in known:
        raise BuildError(f"unknown variant {variant!r}; expected one of {', '.join(known)}")
    recipe = known[variant]
    if kv is None:
        return recipe
    choices = (recipe.cache, CachePrecision.INT8) if recipe.device is Device.CUDA else KV_PRECISIONS
    if kv not in choices:
        raise BuildError(f"unknown precision of keys and values {kv!r}; expected one of {', '.join(choices)}")
    return replace(recipe, cache=CachePrecision(kv))


def _write(source: Checkpoint, out: Path, slots: int, recipe: Variant, report: Progress) -> None:
    calibrated = 0.0

    def calibrating(done: float) -> None:
        nonlocal calibrated
        calibrated = _CALIBRATION_SHARE * done
        report("calibrating", calibrated)

    graphs = graphs_of(source, recipe, calibrating)
    expected = sum(graph.weight_bytes for graph in graphs.values())
    written = 0
    errors: dict[str, dict[str, Any]] = {}
    for model in served_models(source.geometry, recipe.device):
        graph = graphs[model.name]
        version = out / "triton" / model.name / "1"
        version.mkdir(parents=True)
        (version.parent / "config.pbtxt").write_text(model.pbtxt(slots, recipe.device))
        (version / "model.py").write_text(ENTRY_POINT)

        def weight_done(name: str, size: int, model: str = model.name) -> None:
            nonlocal written
            written += size
            share = calibrated + (_VOICES_AT - calibrated) * written / expected
            report(f"{model}: {name}", min(share, _VOICES_AT))

        rounding = graph.save(version / "model.onnx", weight_done)
        errors[model.name] = {name: asdict(error) for name, error in rounding.items()}

    report("voices", _VOICES_AT)
    voices = write_voices((source.voice(name) for name in source.voices), out)
    shutil.copyfile(source.tokenizer, out / TOKENIZER)
    if source.evaluation is not None:
        shutil.copytree(source.evaluation, out / EVALUATION_FOLDER)

    report("checksums", 0.93)
    files = {
        str(path.relative_to(out)): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }
    cpu = recipe.device is Device.CPU
    manifest = manifest_of(source.geometry, slots, recipe) | {
        # Bytes that the models hold once they are loaded.
        "memory": {
            "weights": sum(graph.loaded_bytes if cpu else graph.weight_bytes for graph in graphs.values()),
            "slot": sum(graph.slot_bytes for graph in graphs.values()),
        },
        "voices": voices,
        "files": files,
        "weights": errors,
    }
    (out / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def write_voices(voices: Iterable[Voice], out: Path) -> dict[str, Any]:
    """Write each voice to the repository `out`; the manifest's entries, by name."""
    entries = {}
    (out / "voices").mkdir()
    for voice in voices:
        file = out / "voices" / f"{voice.name}.safetensors"
        voice.save(file)
        entries[voice.name] = {"file": f"voices/{file.name}", "frames": voice.frames, "sha256": _sha256(file)}
    return entries


def manifest_of(geometry: Geometry, slots: int, recipe: Variant) -> dict[str, Any]:
    """What the manifest says of the models; files, voices and memory are not among it."""
    lm, mimi = geometry.lm, geometry.mimi
    return {
        "format": FORMAT,
        "project_version": metadata.version("personaplex-triton"),
        "variant": recipe.name,
        "kv": recipe.cache.value,
        "device": recipe.device.value,
        "slots": slots,
        "sample_rate": SAMPLE_RATE,
        "frame_size": mimi.frame_size,
        "frame_rate": SAMPLE_RATE / mimi.frame_size,
        "codebooks": AGENT_CODEBOOKS,
        "dim": lm.temporal.dim,
        "card": lm.card,
        "text_card": lm.text_card,
        "text_padding_id": lm.text_padding_id,
        "max_text_top_k": max_text_top_k(lm, recipe.device),
        "delays": list(lm.delays),
        "context": lm.temporal.context,
        "sampling": SAMPLING_DEFAULTS,
        "tokenizer": TOKENIZER,
        "models": [model.name for model in served_models(geometry)],
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
