"""The built repository as the gateway sees it: manifest.json (geometry, voices, slots) and the voices' tensors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file

from gateway.errors import RepositoryError, UnknownVoice

FORMAT = 1


@dataclass(frozen=True, eq=False)
class VoicePreset:
    """A voice as converted at build time, N frames long.

    embeddings: [N-1, dim] float32, the summed input embeddings of columns 0..N-2.
    columns: [2, 17] int64, column N-1 whole and, of column N, what the voice's last frame already fixes (else -1).
    """

    embeddings: npt.NDArray[np.float32]
    columns: npt.NDArray[np.int64]


class VoiceEntry(BaseModel):
    """Where a voice lies and how many 80 ms frames it has."""

    file: str
    frames: int
    sha256: str


class SamplingDefaults(BaseModel):
    """How tokens are drawn when a caller does not say."""

    audio_temperature: float
    audio_top_k: int
    text_temperature: float
    text_top_k: int


class Manifest(BaseModel):
    """manifest.json. Sizes are in samples, frames and tokens; `slots` is how many conversations fit at once."""

    model_config = ConfigDict(frozen=True)

    format: int
    project_version: str
    variant: str
    slots: int = Field(ge=1)
    sample_rate: int
    frame_size: int
    frame_rate: float
    codebooks: int
    dim: int
    card: int
    text_card: int
    text_padding_id: int
    delays: tuple[int, ...]
    context: int
    sampling: SamplingDefaults
    tokenizer: str
    voices: dict[str, VoiceEntry] = Field(min_length=1)
    models: tuple[str, ...]

    _folder: Path = PrivateAttr()
    _presets: dict[str, VoicePreset] = PrivateAttr(default_factory=dict)

    @classmethod
    def load(cls, models_dir: Path) -> Manifest:
        """Read MODELS/manifest.json and see that what it names is there. Raises RepositoryError, one line."""
        path = models_dir / "manifest.json"
        if not path.is_file():
            raise RepositoryError(f"{models_dir} is not a built repository: it has no manifest.json")
        try:
            manifest = cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise RepositoryError(f"{path} cannot be read: {_first(error)}") from None
        if manifest.format != FORMAT:
            raise RepositoryError(f"{path} has format {manifest.format}; this version reads format {FORMAT}")
        manifest._folder = models_dir
        for name in (manifest.tokenizer, *(voice.file for voice in manifest.voices.values())):
            if not (models_dir / name).is_file():
                raise RepositoryError(f"{models_dir} is incomplete: {name} is missing")
        return manifest

    @cached_property
    def tokenizer_path(self) -> Path:
        return self._folder / self.tokenizer

    def require_voice(self, name: str) -> str:
        """`name` if there is such a preset. Raises UnknownVoice, which lists those there are."""
        if name not in self.voices:
            raise UnknownVoice(name, self.voices)
        return name

    def load_voice(self, name: str) -> VoicePreset:
        """A preset's tensors, read once and kept. Raises UnknownVoice, or RepositoryError for an unusable file."""
        if (preset := self._presets.get(name)) is None:
            preset = self._presets[name] = self._read_voice(self.require_voice(name))
        return preset

    def _read_voice(self, name: str) -> VoicePreset:
        entry = self.voices[name]
        path = self._folder / entry.file
        try:
            tensors = load_file(path)
        except (OSError, SafetensorError) as error:
            raise RepositoryError(f"{path} cannot be read: {error}") from None
        expected = {
            "embeddings": ((entry.frames - 1, self.dim), np.dtype(np.float32)),
            "columns": ((2, len(self.delays)), np.dtype(np.int64)),
        }
        for key, (shape, dtype) in expected.items():
            found = tensors.get(key)
            if found is None or found.shape != shape or found.dtype != dtype:
                was = "nothing" if found is None else f"{found.dtype} {list(found.shape)}"
                raise RepositoryError(f"{path}: {key} should be {dtype} {list(shape)}, found {was}")
        return VoicePreset(tensors["embeddings"], tensors["columns"])


def _first(error: ValidationError) -> str:
    detail = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in detail["loc"])
    return f"{where}: {detail['msg']}" if where else detail["msg"]
