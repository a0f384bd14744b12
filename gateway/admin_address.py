"""Where the operator API listens."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

NONE = "none"


@dataclass(frozen=True, slots=True)
class AdminAddress:
    """A Unix socket (`path`) or a TCP address (`host`, `port`)."""

    path: Path | None = None
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        return str(self.path) if self.path is not None else f"{self.host}:{self.port}"


def admin_address(listen: str | None, http_port: int) -> AdminAddress | None:
    """Parse the setting `admin_listen`; None if the operator API is switched off.

    Args:
        listen: a Unix socket's path (it contains a slash), HOST:PORT, `none`, or None for the default.
        http_port: of the public HTTP API; it names the default socket.

    Raises:
        ValueError: `listen` is none of these.
    """
    if listen is None:
        return AdminAddress(path=runtime_folder() / f"admin-{http_port}.sock")
    if listen == NONE:
        return None
    if "/" in listen:
        return AdminAddress(path=Path(listen.removeprefix("unix:")))
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"admin_listen: expected the path of a Unix socket, HOST:PORT or none, got {listen!r}")
    return AdminAddress(host=host.strip("[]"), port=int(port))


def runtime_folder() -> Path:
    """Folder of the default socket: `personaplex` in XDG_RUNTIME_DIR, or one of this user in the temp folder."""
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "personaplex"
    return Path(tempfile.gettempdir()) / f"personaplex-{os.getuid()}"
