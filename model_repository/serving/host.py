"""The memory of this machine, or of the container that limits it."""

from __future__ import annotations

from pathlib import Path

_MEMORY_INFO = Path("/proc/meminfo")
_CONTROL_GROUP = Path("/sys/fs/cgroup")


class HostMemory:
    """Bytes of main memory; a control group (version 2) may allow less than the machine has."""

    def total(self) -> int:
        """Bytes in all, free or not."""
        total, limit = _memory_info("MemTotal"), _number(_CONTROL_GROUP / "memory.max")
        return total if limit is None else min(total, limit)

    def free(self) -> int:
        """Bytes that processes could take: what is free, and pages of files that can be read again."""
        available, limit = _memory_info("MemAvailable"), _number(_CONTROL_GROUP / "memory.max")
        held = _number(_CONTROL_GROUP / "memory.current")
        if limit is None or held is None:
            return available
        return min(available, max(0, limit - held + _inactive_file_bytes()))


def _memory_info(name: str) -> int:
    """A line of /proc/meminfo, which counts in KiB, as bytes."""
    for line in _MEMORY_INFO.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    raise OSError(f"{_MEMORY_INFO}: no line {name}")


def _number(file: Path) -> int | None:
    """A control group's number of bytes; None without one, or with no limit ("max")."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _inactive_file_bytes() -> int:
    try:
        lines = (_CONTROL_GROUP / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
