"""The folder a repository is built into: written beside its place, and moved there when it is complete."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model_repository.errors import BuildError

MANIFEST = "manifest.json"
"""Written last: its presence says that the rest is complete."""


def check_place(models: Path, force: bool) -> None:
    """Raises `BuildError` unless `models` is free, an earlier repository, or to be overwritten whatever it is."""
    if not models.exists():
        return
    if not models.is_dir():
        raise BuildError(f"{models} is a file; expected a folder to write the repository to")
    if not force and any(models.iterdir()) and _manifest(models) is None:
        raise BuildError(f"{models} holds something else than a model repository; --force overwrites it")


@contextmanager
def replacing(models: Path) -> Iterator[Path]:
    """A folder to write to; what is in it takes the place of `models` in the end.

    Voices that were added to an earlier repository of the same checkpoint are carried over. Raises `BuildError` for a
    place that cannot be written; then, and after any other error, `models` is what it was.
    """
    staging = None
    try:
        models.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(models)
        staging = Path(tempfile.mkdtemp(prefix=f"{_prefix(models)}{os.getpid()}-", dir=models.parent))
        yield staging
        _keep_added_voices(models, staging)
        if models.exists():
            shutil.rmtree(models)
        staging.rename(models)
    except OSError as error:
        raise BuildError(f"cannot write {models}: {error}") from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


def _prefix(models: Path) -> str:
    return f".{models.name}.building-"


def _remove_abandoned(models: Path) -> None:
    """What a build that was killed left behind; its process is named in the folder's name."""
    for left in models.parent.glob(f"{_prefix(models)}*"):
        process = left.name.removeprefix(_prefix(models)).partition("-")[0]
        if process.isdecimal() and not Path("/proc", process).exists():
            shutil.rmtree(left, ignore_errors=True)


def _keep_added_voices(models: Path, staging: Path) -> None:
    before, now = _manifest(models), _manifest(staging)
    if before is None or now is None or before["voices"] != now["voices"]:
        return
    for file in (models / "voices").glob("*.safetensors"):
        if file.stem not in before["voices"]:
            shutil.copy2(file, staging / "voices" / file.name)


def _manifest(models: Path) -> dict[str, Any] | None:
    """The manifest of a repository that was built; None if there is none."""
    try:
        manifest = json.loads((models / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    ours = isinstance(manifest, dict) and {"format", "variant", "slots", "voices", "files"} <= manifest.keys()
    return manifest if ours else None
