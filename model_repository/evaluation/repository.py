"""A built repository as an evaluation sees it, and whether two of them come from one checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import sentencepiece
from numpy.typing import NDArray

from model_repository.errors import EvaluationError
from model_repository.serving.device import CudaMemory
from model_repository.serving.execution_target import device_of

_GEOMETRY = ("sample_rate", "frame_size", "codebooks", "dim", "card", "text_card", "delays", "context")
_REQUIRED = ("variant", "kv", "device", "files", "voices", "tokenizer", "weights")


@dataclass(frozen=True)
class Repository:
    """MODELS with its manifest, which `build` wrote."""

    folder: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Repository:
        """Raises `EvaluationError` for a folder that is no built repository."""
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
            missing = {*_GEOMETRY, *_REQUIRED} - manifest.keys()
        except (OSError, ValueError, AttributeError):
            raise EvaluationError(f"{folder} is not a built repository: it has no readable manifest.json") from None
        if missing:
            raise EvaluationError(f"{folder}/manifest.json lacks {', '.join(sorted(missing))}: build it again")
        repository = cls(folder, manifest)
        for name in ("mimi_encoder", "temporal", "depformer", "mimi_decoder"):
            if not repository.graph(name).is_file():
                raise EvaluationError(f"{folder} is incomplete: {repository.graph(name)} is missing")
        return repository

    def graph(self, model: str) -> Path:
        """The ONNX file of one of the four models."""
        return self.folder / "triton" / model / "1" / "model.onnx"

    @property
    def disk_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def transcript(self, text_tokens: NDArray[np.int64]) -> str:
        """Return the words of text tokens [T]; padding is left out."""
        tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(self.folder / self.manifest["tokenizer"]))
        spoken = (text_tokens > 0) & (text_tokens != self.manifest["text_padding_id"])
        spoken &= text_tokens < self.manifest["text_card"]
        return str(tokenizer.decode(text_tokens[spoken].tolist()))

    def device(self) -> CudaMemory | None:
        """What it was built to run on; None for the CPU. Raises `DeviceError` if this machine has no such device, and
        `EvaluationError` for a repository whose models compute nothing.
        """
        provider = self.manifest["device"]
        if provider == "timed":
            raise EvaluationError(f"{self.folder} is for load tests: its models take time, but compute nothing")
        return device_of(provider)

    @cached_property
    def layers(self) -> int:
        """Layers of the temporal transformer: each has one ring of keys."""
        graph = onnx.load(str(self.graph("temporal")), load_external_data=False).graph
        return sum(node.name.startswith("cache.layers.") and node.name.endswith(".key") for node in graph.input)


def check_same_checkpoint(reference: Repository, others: Sequence[Repository]) -> None:
    """Raises `EvaluationError`, naming what differs, for a repository that was not made from the reference's
    checkpoint: geometry, tokenizer and the built-in voices, whose embeddings are made of the weights, must be equal.
    """
    ours = _identity(reference)
    for other in others:
        theirs = _identity(other)
        for what, of in ours.items():
            # A voice that only one of them has was added later, or left out.
            if what in theirs and theirs[what] != of:
                raise EvaluationError(
                    f"{other.folder} was built from another checkpoint than {reference.folder}: {what} differs"
                    + (f" ({theirs[what]} instead of {of})" if not isinstance(of, str) else "")
                )
        if not reference.manifest["voices"].keys() & other.manifest["voices"].keys():
            raise EvaluationError(f"{other.folder} and {reference.folder} have no voice in common")


def _identity(repository: Repository) -> dict[str, Any]:
    manifest = repository.manifest
    identity = {name: manifest[name] for name in _GEOMETRY}
    identity["number of layers"] = repository.layers
    identity["tokenizer"] = manifest["files"].get(manifest["tokenizer"], {}).get("sha256", "")
    voices = manifest["voices"].items()
    return identity | {f"voice {name}": str(voice.get("sha256", "")) for name, voice in voices}
