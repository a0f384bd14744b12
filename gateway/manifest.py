"""manifest.json of a built model repository: geometry, slots and the paths of its files."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from gateway.errors import RepositoryError

FORMAT = 4
VOICES_FOLDER = "voices"


class VoiceEntry(BaseModel):
    """Where the build put a voice and how many 80 ms frames it had."""

    file: str
    frames: int
    sha256: str


class SamplingDefaults(BaseModel):
    """Default sampling parameters."""

    audio_temperature: float
    audio_top_k: int
    text_temperature: float
    text_top_k: int


class Memory(BaseModel):
    """Bytes that the models hold once they are loaded: of weights, and for each slot."""

    weights: int
    slot: int


class Manifest(BaseModel):
    """manifest.json. Sizes are in samples, frames and tokens; `slots` is how many conversations fit at once."""

    model_config = ConfigDict(frozen=True)

    format: int
    project_version: str
    variant: str
    device: str = "cpu"
    slots: int = Field(ge=1)
    sample_rate: int
    frame_size: int
    frame_rate: float
    codebooks: int
    dim: int
    card: int
    text_card: int
    text_padding_id: int
    max_text_top_k: int | None = None
    """Largest top_k of text tokens; None if there is no limit but the vocabulary."""
    delays: tuple[int, ...]
    context: int
    sampling: SamplingDefaults
    tokenizer: str
    memory: Memory | None = None
    """None in repositories of builds that did not record it."""
    built_in: dict[str, VoiceEntry] = Field(alias="voices")
    models: tuple[str, ...]

    _folder: Path = PrivateAttr()

    @classmethod
    def load(cls, models_dir: Path) -> Manifest:
        """Read MODELS/manifest.json and check that the files that it names exist. Raises RepositoryError, one line."""
        path = models_dir / "manifest.json"
        try:
            manifest = cls.model_validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise RepositoryError(f"{models_dir} is not a built repository: it has no manifest.json") from None
        except OSError as error:
            raise RepositoryError(f"{path} cannot be read: {error.strerror}") from None
        except ValidationError as error:
            raise RepositoryError(f"{path} cannot be read: {_first(error)}") from None
        if manifest.format != FORMAT:
            raise RepositoryError(
                f"{path} has format {manifest.format}; this version reads format {FORMAT}: build it again"
            )
        manifest._folder = models_dir
        if not manifest.tokenizer_path.is_file():
            raise RepositoryError(f"{models_dir} is incomplete: {manifest.tokenizer} is missing")
        return manifest

    @property
    def tokenizer_path(self) -> Path:
        return self._folder / self.tokenizer

    @property
    def voices_folder(self) -> Path:
        """Folder of the voice files: those of the build and those added since. `VoiceRegistry` reads it."""
        return self._folder / VOICES_FOLDER


def _first(error: ValidationError) -> str:
    detail = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in detail["loc"])
    return f"{where}: {detail['msg']}" if where else detail["msg"]
