"""Whether files have changed since they were read: for what is read again without a restart."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from time import monotonic

_INTERVAL_S = 1.0
"""Files are looked at no more often."""


class FileWatch:
    """Files as they are when it is created."""

    def __init__(self, *files: Path) -> None:
        self._files = files
        self._checked = monotonic()
        self._versions = self._look()

    def changed(self) -> bool:
        """Whether a file has been written again or replaced since the last change that this has returned."""
        if monotonic() - self._checked < _INTERVAL_S:
            return False
        self._checked = monotonic()
        before, self._versions = self._versions, self._look()
        return self._versions != before

    def _look(self) -> list[tuple[int, ...] | None]:
        return [_version(file) for file in self._files]


def _version(file: Path) -> tuple[int, ...] | None:
    """What differs once the file has been written again or replaced; None if it cannot be read."""
    with suppress(OSError):
        found = file.stat()
        return found.st_mtime_ns, found.st_size, found.st_ino
    return None
