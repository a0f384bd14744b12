"""The folder a repository is built into: written beside its place, and moved there when it is complete."""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model_repository.errors import BuildError

MANIFEST = "manifest.json"
"""Written last: its presence says that the rest is complete."""

_OLD, _NEW, _LOCK = "old", "new", "lock"
_OLD_SECONDS = 86_400.0
"""A workshop without a lock that has not changed for so long is abandoned: a build takes minutes."""
_VOLUMES_OWN = "lost+found"


@dataclass
class Replacement:
    """`folder` is to be written to. `dropped`: voices that were added to what was there before and are not in it."""

    folder: Path
    dropped: list[str] = field(default_factory=list)


def check_place(models: Path, checkpoint: Path, force: bool) -> None:
    """Raises `BuildError` unless `models` is free, an earlier repository, or to be replaced whatever it is; and always
    where the checkpoint would go with it.
    """
    if not models.exists():
        return
    if not models.is_dir():
        raise BuildError(f"{models} is a file; expected a folder to write the repository to")
    if checkpoint.resolve().is_relative_to(models.resolve()):
        raise BuildError(f"{models} holds the checkpoint; expected another folder to write the repository to")
    others = [path for path in models.iterdir() if not path.name.startswith((_prefix(models), _VOLUMES_OWN))]
    if not force and others and _manifest(models) is None:
        raise BuildError(f"{models} holds something else than a model repository; --force replaces all that is in it")


@contextmanager
def replacing(models: Path) -> Iterator[Replacement]:
    """A folder to write to; what is in it takes the place of `models` in the end.

    Voices that were added to an earlier repository of the same checkpoint are carried over. Raises `BuildError` for a
    place that cannot be written; then, and after any other error, `models` is what it was. Only where `models` is a
    mounted volume, which cannot be renamed, what is there goes before the new takes its place, piece by piece.
    """
    models = models.resolve()
    workshop = None
    try:
        home = models if models.is_mount() else models.parent
        home.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(home, models)
        workshop = Path(tempfile.mkdtemp(prefix=_prefix(models), dir=home))
        with _locked(workshop):
            replacement = Replacement(workshop / _NEW)
            replacement.folder.mkdir()
            yield replacement
            replacement.dropped = _keep_added_voices(models, replacement.folder)
            if home == models:
                _refill(models, workshop)
            else:
                _exchange(models, workshop)
    except OSError as error:
        raise BuildError(f"cannot write {models}: {error}") from error
    finally:
        if workshop is not None:
            shutil.rmtree(workshop, ignore_errors=True)


def _exchange(models: Path, workshop: Path) -> None:
    """The new for the old, which is in its place until then, and again if that fails."""
    old = workshop / _OLD
    if models.exists():
        models.rename(old)
    try:
        (workshop / _NEW).rename(models)
    except OSError:
        if old.exists():
            old.rename(models)
        raise


def _refill(models: Path, workshop: Path) -> None:
    """The same inside a folder that has to stay itself; the manifests are first to go and last to come."""
    (models / MANIFEST).unlink(missing_ok=True)
    for path in models.iterdir():
        if path.name in (workshop.name, _VOLUMES_OWN):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    for path in sorted((workshop / _NEW).iterdir(), key=lambda path: path.name == MANIFEST):
        path.rename(models / path.name)


def _prefix(models: Path) -> str:
    return f".{models.name}.building-"


@contextmanager
def _locked(workshop: Path) -> Iterator[None]:
    """Hold the workshop's lock until our process ends at the latest.

    The lock is that of a file open for writing, which NFS has too. The file has its name only when it is locked, so
    that nobody takes a fresh workshop for an abandoned one.
    """
    nameless = workshop / f"{_LOCK}.new"
    with nameless.open("w") as lock:
        with suppress(OSError):  # a file system without locks: the workshop is left alone until it is old
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            nameless.rename(workshop / _LOCK)
        yield


def _is_abandoned(workshop: Path) -> bool:
    """Whether the process that made the workshop has ended."""
    try:
        with (workshop / _LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except FileNotFoundError:
        return time.time() - workshop.stat().st_mtime > _OLD_SECONDS
    except OSError:
        return False


def _remove_abandoned(home: Path, models: Path) -> None:
    """Remove what builds of `models` that were killed left behind in `home`."""
    for left in home.glob(f"{_prefix(models)}*"):
        # Another build may be as quick.
        with suppress(FileNotFoundError):
            if _is_abandoned(left):
                if not models.exists() and (left / _OLD).exists():
                    (left / _OLD).rename(models)
                shutil.rmtree(left, ignore_errors=True)


def _keep_added_voices(models: Path, new: Path) -> list[str]:
    """Copy the voices that did not come with the earlier checkpoint, if this is it again; else say which they were."""
    before, now = _manifest(models), _manifest(new)
    if before is None or now is None:
        return []
    built_in = {name: voice["sha256"] for name, voice in before["voices"].items()}
    files = sorted((models / "voices").glob("*.safetensors"))
    added = [file for file in files if hashlib.sha256(file.read_bytes()).hexdigest() != built_in.get(file.stem)]
    if before["voices"] != now["voices"]:
        return [file.stem for file in added]
    for file in added:
        shutil.copy2(file, new / "voices" / file.name)
    return []


def _manifest(models: Path) -> dict[str, Any] | None:
    """The manifest of a repository that was built; None if there is none."""
    try:
        manifest = json.loads((models / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    ours = isinstance(manifest, dict) and {"format", "variant", "slots", "voices", "files"} <= manifest.keys()
    return manifest if ours else None
