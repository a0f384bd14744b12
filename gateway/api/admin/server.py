"""The operator API's own HTTP server, on a Unix socket or a TCP port apart from the public ones."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

import uvicorn

from gateway.admin_address import AdminAddress, runtime_folder
from gateway.api.admin.app import create_admin_app
from gateway.errors import GatewayError
from gateway.session.runtime import Runtime

logger = logging.getLogger(__name__)


class CannotListen(GatewayError):  # noqa: N818 (as in gateway.errors)
    """The address of the operator API cannot be used."""


class AdminServer:
    """Serves the operator API in the event loop it is started in."""

    def __init__(self, runtime: Runtime, address: AdminAddress) -> None:
        self.address = address
        self._runtime = runtime
        self._server: uvicorn.Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen. Raises CannotListen."""
        try:
            listener = _bound(self.address)
        except OSError as error:
            reason = error.strerror or str(error)
            raise CannotListen(f"cannot listen on {self.address} for the operator API: {reason}") from None
        if self.address.path is None:
            self.address = AdminAddress(host=self.address.host, port=listener.getsockname()[1])
        app = create_admin_app(self._runtime, self.address.host)
        config = uvicorn.Config(
            app, log_config=None, lifespan="off", server_header=False, timeout_graceful_shutdown=1, ws="none"
        )
        self._server = server = uvicorn.Server(config)
        # Not `serve`: signals belong to the public server.
        self._serving = asyncio.create_task(server._serve([listener]))
        while not server.started and not self._serving.done():  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Close the listener and its connections, and remove the Unix socket."""
        if self._server is None or self._serving is None:
            return
        self._server.should_exit = True
        await asyncio.wait([self._serving])
        if self.address.path is not None:
            with suppress(OSError):
                self.address.path.unlink()


def _bound(address: AdminAddress) -> socket.socket:
    if address.path is None:
        family, kind, protocol, _, name = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(name)
        return listener
    path = address.path
    if path.parent == runtime_folder():
        _make_private(path.parent)
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener


def _make_private(folder: Path) -> None:
    """Create the folder for this user only. Raises PermissionError if another user owns it."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a folder of this user alone")


def _remove_stale(path: Path) -> None:
    """Remove the socket of a server that has ended. Raises OSError if one still listens there."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError("another server listens there")
