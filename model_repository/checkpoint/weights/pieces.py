"""One logical file cut into raw pieces, `NAME.shard-00`, `NAME.shard-01` …: their bytes, one after another, are it."""

from __future__ import annotations

import io
import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from model_repository.errors import CheckpointError

_PIECE = re.compile(r"(.+)\.shard-(\d{1,4})")


def whole_name(path: Path) -> str | None:
    """The name of the logical file that `path` is a piece of; None if its name is not that of a piece."""
    match = _PIECE.fullmatch(path.name)
    return match[1] if match else None


def pieces_of(path: Path) -> list[Path]:
    """All pieces of the logical file that `path` is one of, in order; `[path]` if it is a whole file.

    Raises `CheckpointError` naming a piece that is missing between others.
    """
    whole = whole_name(path)
    if whole is None:
        return [path]
    numbered = {}
    for other in path.parent.iterdir():
        match = _PIECE.fullmatch(other.name)
        if match and match[1] == whole:
            if int(match[2]) in numbered:
                raise CheckpointError(f"{other}: piece {int(match[2])} of {whole} is there twice")
            numbered[int(match[2])] = other
    for number in range(len(numbered)):
        if number not in numbered:
            raise CheckpointError(f"{path.parent / f'{whole}.shard-{number:02d}'} is missing, a piece of {whole}")
    return [numbered[number] for number in range(len(numbered))]


class Pieces(io.RawIOBase):
    """The logical file, for reading. A piece is open during a read and not between. Raises `OSError` as files do."""

    def __init__(self, paths: Sequence[Path]) -> None:
        super().__init__()
        self._paths = paths
        self._ends = list(accumulate(path.stat().st_size for path in paths))
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._ends[-1]}[whence]
        self._at = max(origin + offset, 0)
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fills at most up to the end of the piece it is in, as raw files may."""
        index = bisect_right(self._ends, self._at)
        if index == len(self._ends):
            return 0
        with self._paths[index].open("rb", buffering=0) as piece:
            piece.seek(self._at - (self._ends[index - 1] if index else 0))
            count = piece.readinto(buffer)
        self._at += count
        return count
