"""Fetches a published checkpoint from the Hugging Face Hub into a folder that `Checkpoint.open` reads."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from model_repository.checkpoint.folder import CONFIG_FILE, LM_FILE, MIMI_FILE, TOKENIZER_FILE, Checkpoint
from model_repository.checkpoint.hub.repository import HubFile, HubRepository
from model_repository.checkpoint.voices import VOICES_FOLDER
from model_repository.checkpoint.voices.voice_archive import VOICES_ARCHIVE, unpack_voices
from model_repository.errors import DownloadError

_LICENCES = {"nvidia/personaplex-7b-v1": "the NVIDIA Open Model License"}
_WEIGHTS = re.compile(r"model\.safetensors(\.index\.json)?|model-\d{5}-of-\d{5}\.safetensors")
_VOICE = re.compile(r"voices/[A-Za-z0-9_-]{1,64}\.pt")
_LICENCE_FILE = re.compile(r"LICENSE(\.md|\.txt)?")
_UNPACKED = 2
"""How much larger than their archive voices are taken to be; published ones are bfloat16, which packs little."""

Progress = Callable[[str, float], None]
"""Called with what is being done and how many bytes of the whole are there."""


@dataclass(frozen=True)
class Downloaded:
    """What lies in the folder now: files of `repository` at `commit`, `bytes` in all."""

    repository: str
    commit: str
    bytes: int
    voices: int


def licence_note(repository: str) -> str:
    """One line on whose terms the weights come with."""
    licence = _LICENCES.get(repository, "a licence of their own")
    return f"the weights of {repository} come under {licence}: read it at https://huggingface.co/{repository}"


def needed(hub: HubRepository) -> list[HubFile]:
    """The files of a checkpoint, smallest first, so that a closed gate shows at once.

    Raises `DownloadError` naming what the repository lacks.
    """
    names = set(hub.files)
    weights = {name for name in names if _WEIGHTS.fullmatch(name)}
    if LM_FILE in weights:
        weights = {LM_FILE}
    elif f"{LM_FILE}.index.json" not in weights:
        weights = set()
    voices = {VOICES_ARCHIVE} & names or {name for name in names if _VOICE.fullmatch(name)}
    for found, what in (
        (weights, LM_FILE),
        ({MIMI_FILE} & names, MIMI_FILE),
        ({TOKENIZER_FILE} & names, TOKENIZER_FILE),
        (voices, VOICES_ARCHIVE),
    ):
        if not found:
            raise DownloadError(f"{hub.name} at {hub.commit[:12]} has no {what}; it has {_listed(names)}")
    extras = {name for name in names if name == CONFIG_FILE or _LICENCE_FILE.fullmatch(name)}
    wanted = weights | voices | extras | {MIMI_FILE, TOKENIZER_FILE}
    return sorted((hub.files[name] for name in wanted), key=lambda file: (file.size, file.name))


def download_checkpoint(hub: HubRepository, out: Path, progress: Progress | None = None) -> Downloaded:
    """Fetches what is missing of the checkpoint into `out`, unpacks its voices, and opens it.

    An attempt that was cut off goes on where it was; a file that is there whole is checked and kept, one that is
    another is not overwritten. Raises `DownloadError`, and `CheckpointError` if what came is no checkpoint.
    """
    report = progress or (lambda _what, _done: None)
    files = needed(hub)
    try:
        out.mkdir(parents=True, exist_ok=True)
        _check_space(hub, files, out)
        before = 0
        for file in files:
            _fetch(hub, file, out, before, report)
            before += file.size
        report("unpacking the voices", before)
        if (out / VOICES_ARCHIVE).is_file():
            unpack_voices(out / VOICES_ARCHIVE, out / VOICES_FOLDER)
    except OSError as error:
        raise DownloadError(f"{error.filename or out}: {error.strerror or error}") from None
    checkpoint = Checkpoint.open(out)
    return Downloaded(hub.name, hub.commit, before, len(checkpoint.voices))


def _fetch(hub: HubRepository, file: HubFile, out: Path, before: int, report: Progress) -> None:
    """Sees that the file is there and whole, after `before` bytes of others."""
    path = out / file.name
    if not path.exists():
        hub.fetch(file, out, lambda done: report(file.name, before + done))
    elif not file.is_at(path, lambda done: report(f"checking {file.name}", before + done)):
        theirs = f"the file of {hub.name} at {hub.commit[:12]}"
        raise DownloadError(f"{path} is not {theirs}: move it away, or choose another folder")


def _check_space(hub: HubRepository, files: Iterable[HubFile], out: Path) -> None:
    """Raises `DownloadError` if the disk has no room for what is still to come."""
    room = 0
    for file in files:
        if not (out / file.name).exists():
            part = hub.part(file, out)
            room += max(file.size - (part.stat().st_size if part.exists() else 0), 0)
        if file.name == VOICES_ARCHIVE and not (out / VOICES_FOLDER).exists():
            room += _UNPACKED * file.size
    free = shutil.disk_usage(out).free
    if room > free:
        raise DownloadError(f"{out}: {room / 1e9:.1f} GB are still to come, the disk has {free / 1e9:.1f} GB free")


def _listed(names: Iterable[str]) -> str:
    first = sorted(names)[:8]
    return ", ".join(first) or "nothing"
