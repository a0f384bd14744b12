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
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from model_repository.checkpoint.folder import Checkpoint
from model_repository.checkpoint.geometry import AGENT_CODEBOOKS, SAMPLE_RATE, Geometry
from model_repository.depformer import graph as depformer
from model_repository.errors import BuildError
from model_repository.graph.builder import Graph
from model_repository.mimi_decoder import graph as mimi_decoder
from model_repository.mimi_encoder import graph as mimi_encoder
from model_repository.temporal import graph as temporal
from model_repository.triton_config import served_models

MANIFEST = "manifest.json"
FORMAT = 1
"""Version of the manifest's own layout."""

VARIANTS = ("fp32",)

SAMPLING_DEFAULTS = {"audio_temperature": 0.8, "audio_top_k": 250, "text_temperature": 0.7, "text_top_k": 25}
"""The reference's defaults."""

Progress = Callable[[str, float], None]
"""Called with what is being done and the fraction of the whole that is done."""


def build_repository(
    checkpoint: Path,
    models: Path,
    *,
    slots: int = 8,
    variant: str = "fp32",
    force: bool = False,
    progress: Progress | None = None,
) -> None:
    """Build the checkpoint at `checkpoint` into the repository `models`, for `slots` conversations at once.

    An earlier repository at `models` is replaced; any other non-empty folder only with `force`. Raises
    `CheckpointError` for a checkpoint that cannot be read and `BuildError` for a place that cannot be written.
    """
    if variant not in VARIANTS:
        raise BuildError(f"unknown variant {variant!r}; this version builds {', '.join(VARIANTS)}")
    if not 1 <= slots <= 1024:
        raise BuildError(f"slots must be from 1 to 1024, got {slots}")
    _check_place(models, force)
    report = progress or (lambda _what, _done: None)
    report("reading the checkpoint", 0.0)
    source = Checkpoint.open(checkpoint)
    models.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{models.name}.building-", dir=models.parent))
    try:
        _write(source, staging, slots, variant, report)
        if models.exists():
            shutil.rmtree(models)
        staging.rename(models)
    except OSError as error:
        raise BuildError(f"cannot write {models}: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    report("done", 1.0)


def _check_place(models: Path, force: bool) -> None:
    if not models.exists():
        return
    if not models.is_dir():
        raise BuildError(f"{models} is a file; expected a folder to write the repository to")
    if not force and any(models.iterdir()) and not _is_ours(models):
        raise BuildError(f"{models} holds something else than a model repository; --force overwrites it")


def _is_ours(models: Path) -> bool:
    """Whether `models` holds a repository that this module wrote."""
    try:
        manifest = json.loads((models / MANIFEST).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and {"format", "variant", "slots", "files"} <= manifest.keys()


def _graphs(source: Checkpoint) -> dict[str, Graph]:
    geometry = source.geometry
    return {
        "mimi_encoder": mimi_encoder.build(geometry.mimi, source.mimi),
        "temporal": temporal.build(geometry.lm, source.lm),
        "depformer": depformer.build(geometry.lm, source.lm),
        "mimi_decoder": mimi_decoder.build(geometry.mimi, source.mimi),
    }


def _write(source: Checkpoint, out: Path, slots: int, variant: str, report: Progress) -> None:
    graphs = _graphs(source)
    expected = sum(graph.weight_bytes for graph in graphs.values())
    written = 0
    for model in served_models(source.geometry):
        graph = graphs[model.name]
        version = out / "triton" / model.name / "1"
        version.mkdir(parents=True)
        (version.parent / "config.pbtxt").write_text(model.pbtxt(slots, graph.weight_bytes))
        shutil.copyfile(Path(__file__).parent / model.name / "1" / "model.py", version / "model.py")

        def weight_done(name: str, size: int, model: str = model.name) -> None:
            nonlocal written
            written += size
            report(f"{model}: {name}", 0.9 * written / expected)

        graph.save(version / "model.onnx", weight_done)

    report("voices", 0.9)
    voices = {}
    (out / "voices").mkdir()
    for name in source.voices:
        voice = source.voice(name)
        file = out / "voices" / f"{name}.safetensors"
        voice.save(file)
        voices[name] = {"file": f"voices/{name}.safetensors", "frames": voice.frames, "sha256": _sha256(file)}
    shutil.copyfile(source.tokenizer, out / "tokenizer.model")

    report("checksums", 0.93)
    files = {
        str(path.relative_to(out)): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }
    manifest = _manifest(source.geometry, slots, variant) | {"voices": voices, "files": files}
    (out / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def _manifest(geometry: Geometry, slots: int, variant: str) -> dict[str, Any]:
    lm, mimi = geometry.lm, geometry.mimi
    return {
        "format": FORMAT,
        "project_version": metadata.version("personaplex-triton"),
        "variant": variant,
        "slots": slots,
        "sample_rate": SAMPLE_RATE,
        "frame_size": mimi.frame_size,
        "frame_rate": SAMPLE_RATE / mimi.frame_size,
        "codebooks": AGENT_CODEBOOKS,
        "dim": lm.temporal.dim,
        "card": lm.card,
        "text_card": lm.text_card,
        "text_padding_id": lm.text_padding_id,
        "delays": list(lm.delays),
        "context": lm.temporal.context,
        "sampling": SAMPLING_DEFAULTS,
        "tokenizer": "tokenizer.model",
        "models": [model.name for model in served_models(geometry)],
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
