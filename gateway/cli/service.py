"""Run Triton and the gateway together."""

from __future__ import annotations

import errno
import socket
import ssl
import threading
import time
from collections.abc import Callable
from types import TracebackType

from fastapi import FastAPI

from gateway.app import create_app
from gateway.cli.checks import Status, gpu
from gateway.cli.console import CommandError
from gateway.client import Client
from gateway.errors import GatewayError
from gateway.manifest import Manifest
from gateway.server import GatewayServer
from gateway.session.tokenizer import Tokenizer
from gateway.session.warmup import prefix_of
from gateway.settings import Settings
from gateway.triton_server import TritonServer, TritonSupervisor
from gateway.voices.registry import VoiceRegistry

POLL_S = 0.1
AFTER_PREFILL_S = 1.0


class Service:
    """Serve a built repository over HTTP and gRPC. A context manager; ready once entered.

    Args:
        settings: repository, host, ports (0: a free one) and the other settings of the gateway.
        external_triton: use the Triton at `settings.triton_url` instead of starting one.
        wait: seconds to wait until Triton and the models are ready.
        on_step: called with a description of each step of the start.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        external_triton: bool = False,
        wait: float = 900.0,
        on_step: Callable[[str], None] | None = None,
    ) -> None:
        self.settings = settings
        self.manifest = Manifest.load(settings.models)
        self._wait = wait
        self._on_step = on_step or (lambda _what: None)
        self._supervisor = None if external_triton else TritonSupervisor(TritonServer(settings.models / "triton"))
        self._socket: socket.socket | None = None
        self._app: FastAPI | None = None
        self._gateway: GatewayServer | None = None
        # Not Thread.join: in Python 3.11, a signal handler that raises in it leaves the thread marked as ended.
        self._ended = threading.Event()

    @property
    def url(self) -> str:
        """URL of the gateway."""
        return f"{'https' if self.settings.tls else 'http'}://{self._host}:{self.settings.port}"

    @property
    def grpc_target(self) -> str | None:
        """HOST:PORT of the gRPC API; None if it is disabled."""
        port = self._app.state.grpc.port if self._app else 0
        return f"{self._host}:{port}" if port else None

    @property
    def _host(self) -> str:
        return f"[{self.settings.host}]" if ":" in self.settings.host else self.settings.host

    @property
    def triton(self) -> TritonServer | None:
        """The embedded Triton; None if an external one is used."""
        return self._supervisor.server if self._supervisor else None

    def start(self) -> None:
        """Start both and wait until they are ready.

        Raises CommandError, TritonError or RepositoryError; then neither is running.
        """
        deadline = time.monotonic() + self._wait
        try:
            self._check()
            if self._supervisor:
                self._on_step("starting Triton")
                self._supervisor.start(timeout=self._wait)
                self.settings = self.settings.model_copy(update={"triton_url": self._supervisor.server.http_url})
            starting = time.monotonic()
            self._start_gateway()
            # The models are not waited for while the gateway itself starts.
            deadline += time.monotonic() - starting
            self._on_step("waiting for the models" + (" and prefilling" if self.settings.warm else ""))
            self._wait_ready(deadline)
        except BaseException:
            self.stop(now=True)
            raise

    def running(self) -> bool:
        """Return whether the gateway is running."""
        return self._gateway is not None and not self._ended.is_set()

    def join(self) -> None:
        """Wait until the gateway ends."""
        if self._gateway:
            self._ended.wait()

    def stop(self, *, now: bool = False) -> None:
        """Drain and stop the gateway, then stop Triton. Can be called more than once.

        New conversations are refused; running ones may continue for `drain_seconds`. `now`: stop both without waiting.
        """
        if self._gateway:
            if now:
                self._gateway.hurry()
            self._gateway.should_exit = True
            self._ended.wait()
        if self._supervisor:
            self._supervisor.stop(now=now)
        if self._socket:
            self._socket.close()

    def hurry(self) -> None:
        """End the draining of a `stop` that runs in another thread."""
        if self._gateway:
            self._gateway.hurry()

    def __enter__(self) -> Service:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _check(self) -> None:
        """Check what would otherwise fail only after Triton has loaded the models. Raises CommandError."""
        manifest = self.manifest
        if self._supervisor and manifest.device == "cuda" and (found := gpu()).status is not Status.OK:
            raise CommandError(f"{self.settings.models} was built for CUDA: {found.found}; build with --device cpu")
        tokenizer = Tokenizer(manifest.tokenizer_path, manifest.text_card, manifest.text_padding_id)
        voices = VoiceRegistry(manifest)
        for persona in self.settings.warm:
            try:
                prefix_of(persona, manifest, voices, tokenizer)
            except GatewayError as error:
                raise CommandError(f"--warm {persona}: {error.message}") from None
        grpc_port = self.settings.grpc_listen_port
        self._socket = _bound(self.settings.host, self.settings.port, "--port")
        if grpc_port:
            _bound(self.settings.host, grpc_port, "--grpc-port").close()
        if tls := self.settings.tls:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*tls)
            except OSError as error:
                where = f"{tls.certificate} with {tls.key}"
                raise CommandError(f"cannot use {where} for TLS: {error.strerror or error}") from None
        ports = {"port": self._socket.getsockname()[1], "grpc_port": -1 if grpc_port is None else grpc_port}
        self.settings = self.settings.model_copy(update=ports)

    def _start_gateway(self) -> None:
        self._app = create_app(self.settings, manifest=self.manifest)
        self._gateway = gateway = GatewayServer(self._app, self.settings)

        def run() -> None:
            try:
                gateway.run([self._socket] if self._socket else None)
            finally:
                self._ended.set()

        # Outside the main thread, uvicorn installs no signal handlers.
        threading.Thread(target=run, name="gateway").start()
        while not (gateway.started or self._ended.is_set()):
            time.sleep(POLL_S)

    def _prefilling(self) -> bool:
        return self._app is not None and bool(self._app.state.runtime.warmup.prefilling)

    def _wait_ready(self, deadline: float) -> None:
        # Wildcard addresses cannot be connected to.
        local = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.settings.host)  # noqa: S104
        url = self.url if local is None else self.url.replace(self.settings.host, local)
        # The certificate is valid for the public name, not for this address.
        with Client(url, verify=False) as client:
            while True:
                # A prefill may take longer than everything before it. It may end between two of these lines.
                if self._prefilling():
                    deadline = max(deadline, time.monotonic() + AFTER_PREFILL_S)
                if (missing := client.ready()) is None:
                    return
                if not self.running():
                    raise CommandError("the gateway ended while starting; see its log")
                if time.monotonic() > deadline and not self._prefilling():
                    where = f"Triton at {self.settings.triton_url}"
                    raise CommandError(f"{where} is not ready after {self._wait:g} s: {missing}")
                time.sleep(POLL_S)


def _bound(host: str, port: int, option: str) -> socket.socket:
    """Return a socket bound to the port. Raises CommandError, which names the option to change."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, OverflowError) as error:
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        hint = f" (choose another with {option})" if taken else ""
        reason = getattr(error, "strerror", None) or str(error)
        raise CommandError(f"cannot listen on {host}:{port}: {reason}{hint}") from None
    return bound
