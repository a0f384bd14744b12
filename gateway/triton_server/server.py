"""Start and stop one embedded tritonserver."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

import psutil

from gateway.triton_server import guard
from gateway.triton_server.errors import TritonStartError
from gateway.triton_server.installation import TritonInstallation
from gateway.triton_server.options import LOOPBACK, TritonOptions
from gateway.triton_server.probe import is_ready, listens

START_ATTEMPTS = 5
_PORT_TAKEN = "already in use"
"""In Triton's log if another process took a port between its selection and Triton's bind."""
_LOCK_FAILED = "boost::interprocess::lock_exception"
"""In Triton's log if its Python backend could not lock its shared memory. That happens on a busy machine, rarely:
https://github.com/triton-inference-server/server/issues/8882"""
LOG_LINES = 200
POLL_S = 0.05

_log = logging.getLogger("personaplex.triton")
_LEVELS = {"I": logging.DEBUG, "W": logging.INFO, "E": logging.ERROR, "F": logging.ERROR}
_NO_GPU = "CudaDriverHelper has not been initialized"  # Triton logs this as an error on machines without a GPU
_LOG_LINE = re.compile(r"^([IWEF])\d{4} \d\d:\d\d:\d\d")


class TritonServer:
    """A tritonserver process that serves one model repository on loopback ports.

    A synchronous and an asynchronous context manager:

        with TritonServer(models / "triton") as server:
            channel = grpc.insecure_channel(server.grpc_url)

    A guard process (see `guard`) is the parent of the server, so that server and stubs end when this process ends.

    Args:
        model_repository: folder with one folder per model.
        options: flags. Ports that are 0 are selected at the start.
        environment: variables of server and models, added to those of this process.
        installation: paths of the server; by default those of the wheel in the running environment.
    """

    def __init__(
        self,
        model_repository: Path,
        options: TritonOptions | None = None,
        *,
        environment: Mapping[str, str] | None = None,
        installation: TritonInstallation | None = None,
    ) -> None:
        self.model_repository = model_repository
        self.options = options or TritonOptions()
        self._environment = dict(environment or {})
        self._installation = installation
        self._guard: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._lines: deque[str] = deque(maxlen=LOG_LINES)
        self._folder = Path()
        self._shm_prefix = ""

    @property
    def http_url(self) -> str:
        """HOST:PORT of the HTTP API; known after the start."""
        return f"{LOOPBACK}:{self.options.http_port}"

    @property
    def grpc_url(self) -> str:
        """HOST:PORT of the gRPC API; known after the start."""
        return f"{LOOPBACK}:{self.options.grpc_port}"

    @property
    def metrics_url(self) -> str | None:
        """URL of Triton's Prometheus metrics; None if they are disabled."""
        port = self.options.metrics_port
        return None if port is None else f"http://{LOOPBACK}:{port}/metrics"

    @property
    def log(self) -> tuple[str, ...]:
        """The last lines of output of the server and its models, oldest first."""
        return tuple(self._lines)

    @property
    def exit_code(self) -> int | None:
        """Exit status of the server (128 + N after signal N); None while it runs."""
        return self._guard.poll() if self._guard else None

    def alive(self) -> bool:
        """Return whether the process runs."""
        return self._guard is not None and self._guard.poll() is None

    def start(self, timeout: float = 900.0, cancelled: threading.Event | None = None) -> None:
        """Start the server and wait until all models are ready and all ports listen.

        Args:
            timeout: in seconds; the published checkpoint takes minutes to load.
            cancelled: set it in another thread to stop waiting.

        Raises:
            TritonNotInstalledError: a part of the embedded server is missing.
            TritonStartError: the server ended or was not ready in time. It is stopped.
        """
        installation = self._installation or TritonInstallation.find()
        chosen = self.options
        passing = [_LOCK_FAILED]
        if 0 in (chosen.http_port, chosen.grpc_port, chosen.metrics_port):
            passing.append(_PORT_TAKEN)
        attempts = START_ATTEMPTS
        while True:
            attempts -= 1
            self.options = chosen.with_free_ports()
            self._launch(installation)
            try:
                return self._wait_ready(time.monotonic() + timeout, cancelled or threading.Event())
            except BaseException as error:
                self.stop(now=True)
                if not attempts or not isinstance(error, TritonStartError) or not _has(error, passing):
                    raise
                _log.warning("%s; starting it again", error)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait up to `timeout` seconds for the server to end; return whether it has ended."""
        if self._guard is None:
            return True
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._guard.wait(timeout)
        return not self.alive()

    def stop(self, *, now: bool = False) -> None:
        """Send SIGTERM, wait, then send SIGKILL to the remaining processes. Can be called more than once.

        Args:
            now: do not wait.
        """
        if self._guard is None:
            return
        if self.alive():
            self._guard.send_signal(signal.SIGUSR1 if now else signal.SIGTERM)
        if not self.wait(_grace(self.options) + 2 * guard.KILL_WAIT_S):
            self._guard.kill()
            self._guard.wait()
        if self._guard.returncode < 0:
            self._clean_up()
        if self._guard.stdin:
            self._guard.stdin.close()
        if self._reader:
            self._reader.join(timeout=1.0)

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> TritonServer:
        cancelled = threading.Event()
        starting = asyncio.ensure_future(asyncio.to_thread(self.start, cancelled=cancelled))
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            cancelled.set()
            await asyncio.wait([starting])
            await asyncio.to_thread(self.stop, now=True)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)

    def _launch(self, installation: TritonInstallation) -> None:
        self._lines.clear()
        folder = self._folder = Path(tempfile.mkdtemp(prefix="personaplex-triton-"))
        try:
            self._launch_in(folder, installation)
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _launch_in(self, folder: Path, installation: TritonInstallation) -> None:
        shm_prefix = self._shm_prefix = f"personaplex_{os.getpid()}_{secrets.token_hex(4)}_"
        _link_python_backend(installation, folder / "backends" / "python")
        command = self.options.argv(installation.binary, self.model_repository, folder / "backends", shm_prefix)
        self._guard = subprocess.Popen(  # noqa: S603 - the command line has no user input
            [sys.executable, "-IS", guard.__file__, str(_grace(self.options)), str(folder), shm_prefix, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=installation.environment({**os.environ, **self._environment}),
            text=True,
            errors="replace",
            # Ctrl-C at the terminal goes to the gateway, which ends conversations before it stops the server.
            start_new_session=True,
        )
        assert self._guard.stdout is not None  # noqa: S101 - for the type checker
        self._reader = threading.Thread(
            target=self._read_log, args=(self._guard.stdout,), name="triton-log", daemon=True
        )
        self._reader.start()

    def _clean_up(self) -> None:
        """Do the guard's cleanup if the guard was killed. Server and stubs have the prefix in their arguments."""
        for process in psutil.process_iter(["cmdline"]):
            if any(self._shm_prefix in argument for argument in process.info["cmdline"] or ()):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        guard.remove_files(self._folder, self._shm_prefix)

    def _read_log(self, stream: IO[str]) -> None:
        for line in stream:
            text = line.rstrip()
            if text:
                self._lines.append(text)
                match = _LOG_LINE.match(text)
                level = _LEVELS[match[1]] if match and _NO_GPU not in text else logging.DEBUG
                _log.log(level, "%s", text)

    def _wait_ready(self, deadline: float, cancelled: threading.Event) -> None:
        while True:
            if not self.alive():
                if self._reader:
                    self._reader.join(timeout=1.0)
                status = f"with status {self.exit_code}"
                raise TritonStartError(f"Triton ended while starting, {status}: {_reason(self.log)}", self.log)
            if self._all_ready():
                return
            if time.monotonic() > deadline:
                raise TritonStartError("Triton was not ready in time", self.log)
            if cancelled.wait(POLL_S):
                raise TritonStartError("the start of Triton was cancelled", self.log)

    def _all_ready(self) -> bool:
        # Triton opens its ports one after another when the models are ready.
        others = (self.options.grpc_port, self.options.metrics_port)
        return is_ready(self.http_url) and all(listens(LOOPBACK, port) for port in others if port is not None)


def _grace(options: TritonOptions) -> float:
    """Seconds between SIGTERM and SIGKILL: Triton's own timeout for open sequences, and 5 s to unload."""
    return options.exit_timeout + 5.0


def _link_python_backend(installation: TritonInstallation, folder: Path) -> None:
    """Link the Python backend with the stub for this Python. Triton prefers a stub in the backend's folder."""
    folder.mkdir(parents=True)
    for part in installation.python_backend.iterdir():
        (folder / part.name).symlink_to(part)
    stub = folder / installation.stub.name
    stub.unlink(missing_ok=True)
    stub.symlink_to(installation.stub)


def _has(error: TritonStartError, causes: Sequence[str]) -> bool:
    return any(cause in line.lower() for line in error.log for cause in causes)


def _reason(log: tuple[str, ...]) -> str:
    """Return the line that most likely states the cause: first failed model, else last error, else last line."""
    failed = [line for line in log if "failed to load '" in line][:1]
    errors = [line for line in log if line.startswith(("E", "F", "error:", "cannot run")) and _NO_GPU not in line]
    line = (failed or errors or [*log] or ["no output"])[-1]
    # Triton quotes messages and escapes the line breaks of tracebacks.
    return line.split("] ", 1)[-1].split("\\n", 1)[0].strip(' "')
