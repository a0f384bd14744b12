"""Source trees to measure: this one, and a git worktree of another commit."""

from __future__ import annotations

import filecmp
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from loadtest.paths import ROOT
from loadtest.server import NoServer, build_random

_NATIVE = Path("model_repository/serving/native")
_BUILDERS = ("model_repository/**/*.py", "model_repository/**/*.c", "model_repository/**/*.h", "gateway/cli/build.py")


@dataclass(frozen=True)
class SourceTree:
    """A checkout. commit: its abbreviated hash, with "+" if files differ from the commit."""

    name: str
    path: Path
    commit: str

    @classmethod
    def of(cls, name: str, path: Path) -> SourceTree:
        """The tree at `path`. Raises NoServer if that is no git checkout."""
        commit = _git(path, "rev-parse", "--short=7", "HEAD")
        changed = _git(path, "status", "--porcelain", "--untracked-files=no")
        return cls(name, path, commit + ("+" if changed else ""))

    def models(self, folder: Path, slots: int) -> Path:
        """Tiny models with `slots` slots, built by this tree's code unless `folder` has them from the same code."""
        digest = hashlib.sha256()
        for pattern in _BUILDERS:
            for file in sorted(self.path.glob(pattern)):
                digest.update(file.relative_to(self.path).as_posix().encode() + file.read_bytes())
        place = folder / f"models-{digest.hexdigest()[:12]}-{slots}"
        if not (place / "models" / "manifest.json").is_file():
            place.mkdir(parents=True, exist_ok=True)
            build_random(place, slots, self.path)
        return place / "models"


@contextmanager
def worktree(revision: str) -> Iterator[SourceTree]:
    """Check `revision` out into a temporary folder, with its kernels; remove it on exit. Raises NoServer."""
    with TemporaryDirectory(prefix="personaplex-base-") as temporary:
        path = Path(temporary) / "tree"
        _git(ROOT, "worktree", "add", "--detach", str(path), revision)
        try:
            _provide_kernels(path)
            yield SourceTree.of("base", path)
        finally:
            _git(ROOT, "worktree", "remove", "--force", str(path))


def _provide_kernels(path: Path) -> None:
    """Copy this tree's compiled kernels if the sources are equal; compile the tree's own otherwise."""
    sources = [file.name for pattern in ("*.c", "*.h") for file in (ROOT / _NATIVE).glob(pattern)]
    equal, _, _ = filecmp.cmpfiles(ROOT / _NATIVE, path / _NATIVE, sources, shallow=False)
    if set(equal) == set(sources):
        for library in (ROOT / _NATIVE).glob("*.so"):
            shutil.copy(library, path / _NATIVE)
    else:
        subprocess.run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=path, check=True)


def _git(path: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=path, capture_output=True, text=True, check=False)  # noqa: S607
    if done.returncode:
        raise NoServer(f"git {' '.join(arguments[:2])}: {done.stderr.strip()}")
    return done.stdout.strip()
