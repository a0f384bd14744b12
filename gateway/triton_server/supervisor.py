"""Restart an embedded Triton that ends unexpectedly, on the same ports, with exponential backoff."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType

from gateway.triton_server.errors import TritonError
from gateway.triton_server.server import TritonServer

FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 30.0
# The backoff starts anew after the server has run this long.
HEALTHY_S = 60.0

_log = logging.getLogger("personaplex.triton")


class TritonSupervisor:
    """Context manager in which `server` runs or is being restarted.

    The gateway reconnects to the same port by itself and is ready when Triton is.

    Args:
        server: a server that has not been started.
        on_restart: called with the exit status of the server at each restart.
    """

    def __init__(self, server: TritonServer, on_restart: Callable[[int], None] | None = None) -> None:
        self.server = server
        self.restarts = 0
        self._on_restart = on_restart
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def start(self, timeout: float = 900.0) -> None:
        """Start the server within `timeout` seconds, then watch it. Raises TritonError if the start fails."""
        self.server.start(timeout, cancelled=self._stopping)
        self._watcher.start()

    def stop(self, *, now: bool = False) -> None:
        """Stop watching, then stop the server, gracefully unless `now`.

        Can be called more than once, and while `start` waits.
        """
        self._stopping.set()
        if self._watcher.is_alive():
            self._watcher.join()
        self.server.stop(now=now)

    def __enter__(self) -> TritonSupervisor:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _watch(self) -> None:
        delay, since = FIRST_DELAY_S, time.monotonic()
        while not self._stopping.is_set():
            if not self.server.wait(0.1):
                continue
            if time.monotonic() - since > HEALTHY_S:
                delay = FIRST_DELAY_S
            status = self.server.exit_code or 0
            self.server.stop()
            _log.error("Triton ended with status %d; restarting it in %.1f s", status, delay)
            if self._stopping.wait(delay):
                return
            delay = min(2 * delay, LONGEST_DELAY_S)
            self.restarts += 1
            if self._on_restart:
                self._on_restart(status)
            try:
                self.server.start(cancelled=self._stopping)
                _log.warning("Triton is ready again")
            except (TritonError, OSError) as error:
                _log.error("%s", error)
            since = time.monotonic()
