"""`personaplex serve`: run Triton and the gateway until a signal."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError

from gateway.cli.console import CommandError, print_status
from gateway.settings import LogFormat, LogLevel, Settings

if TYPE_CHECKING:
    from gateway.cli.service import Service

_log = logging.getLogger("personaplex")

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# An embedded Triton takes minutes to load the published checkpoint; an external one should be running.
WAIT_EMBEDDED_S = 900.0
WAIT_EXTERNAL_S = 60.0


def serve(
    models: Annotated[Path, typer.Argument(help="Folder written by `personaplex build`.")],
    host: Annotated[
        str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]", rich_help_panel="Addresses")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port; 0 selects a free one. [default: 8998]", rich_help_panel="Addresses"),
    ] = None,
    grpc_port: Annotated[
        int | None,
        typer.Option(
            min=-1,
            max=65535,
            help="Port of the gRPC API; 0 selects a free one, -1 disables it. [default: port + 1]",
            rich_help_panel="Addresses",
        ),
    ] = None,
    tls_certificate: Annotated[
        Path | None,
        typer.Option(
            help="PEM file with the certificate and its chain; enables TLS on both ports.", rich_help_panel="Addresses"
        ),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="PEM file with the private key of the certificate.", rich_help_panel="Addresses")
    ] = None,
    warm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VOICE[:PROMPT]",
            help="Prefill this persona before the server is ready, so that its first conversation starts as fast as "
            "later ones. Repeatable. PROMPT is the name of a prompt preset or a text.",
            rich_help_panel="Conversations",
        ),
    ] = None,
    triton: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            envvar="PERSONAPLEX_TRITON_URL",
            help="HTTP endpoint of a running Triton to use instead of the embedded one.",
            rich_help_panel="Triton",
        ),
    ] = None,
    wait: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds to wait for Triton and the models to be ready.", rich_help_panel="Triton"),
    ] = None,
    drain: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Seconds running conversations may continue after a signal. [default: 30]",
            rich_help_panel="Conversations",
        ),
    ] = None,
    log_level: Annotated[
        LogLevel | None, typer.Option(help="Log level on stderr. [default: warning]", rich_help_panel="Log")
    ] = None,
    log_format: Annotated[
        LogFormat | None,
        typer.Option(help="Log lines as text, or as one JSON object each. [default: text]", rich_help_panel="Log"),
    ] = None,
) -> None:
    """Serve a model repository over HTTP and gRPC until SIGINT or SIGTERM.

    After a signal, new conversations are refused and running ones continue for the drain time. A second signal ends
    them at once.
    """
    from gateway.cli.service import Service
    from gateway.telemetry.logs import configure

    settings = settings_with(
        models=models,
        host=host,
        port=port,
        grpc_port=grpc_port,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
        drain_seconds=drain,
        warm=warm or None,
        triton_url=checked_address(triton),
        log_level=log_level,
        log_format=log_format,
    )
    configure(settings.log_level, settings.log_format)
    for name in Settings.unknown(os.environ):
        _log.warning("unknown setting: %s", name)
    if "PERSONAPLEX_API_KEY" in os.environ and not (settings.api_keys or settings.api_keys_file):
        _log.warning("PERSONAPLEX_API_KEY is read by clients only; set PERSONAPLEX_API_KEYS to require keys")
    default_wait = WAIT_EMBEDDED_S if triton is None else WAIT_EXTERNAL_S
    service = Service(
        settings,
        external_triton=triton is not None,
        wait=default_wait if wait is None else wait,
        on_step=print_status,
    )
    run_until_signal(service, lambda: _announce(service))


class Stopped(BaseException):
    """Raised in the main thread by the first signal."""


def run_until_signal(service: Service, on_ready: Callable[[], None]) -> None:
    """Start the service, call `on_ready`, and stop at the first signal; at the second one, stop without draining.

    Raises:
        CommandError: the gateway ended without a signal.
    """

    def hurry(_number: int, _frame: FrameType | None) -> None:
        service.hurry()

    def stop(_number: int, _frame: FrameType | None) -> None:
        for number in SIGNALS:
            signal.signal(number, hurry)
        raise Stopped

    before = [signal.signal(number, stop) for number in SIGNALS]
    try:
        service.start()
        on_ready()
        service.join()
    except Stopped:
        print_status("stopping")
        service.stop()
    else:
        service.stop()
        raise CommandError("the gateway ended unexpectedly; see its log")
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


def settings_with(**given: object) -> Settings:
    """Return the settings of the environment, overridden by `given` values other than None. Raises CommandError."""
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        if not name:
            raise CommandError(first["msg"].removeprefix("Value error, ")) from None
        raise CommandError(f"PERSONAPLEX_{name.upper()}={first['input']!r}: {first['msg']}") from None
    except SettingsError as error:
        raise CommandError(f"{error}: expected JSON") from None


def private_settings(models: Path, **given: object) -> Settings:
    """Return settings of a server for this command only: a free loopback port; no gRPC API, API keys or TLS."""
    settings = settings_with(models=models, host="127.0.0.1", port=0, grpc_port=-1, api_keys=[], **given)
    return settings.model_copy(update={"tls_certificate": None, "tls_key": None, "api_keys_file": None})


def checked_address(address: str | None) -> str | None:
    """Return `address` if it is HOST:PORT or None. Raises CommandError otherwise."""
    if address is not None:
        host, _, port = address.rpartition(":")
        if not host or "/" in address or not port.isdecimal() or not 0 < int(port) < 65536:
            raise CommandError(f"--triton: expected HOST:PORT, got {address!r}")
    return address


def _announce(service: Service) -> None:
    url = service.url
    print(f"PersonaPlex is ready: {url}")
    print(f"  REST     POST {url}/v1/respond")
    if service.grpc_target:
        print(f"  gRPC     {service.grpc_target}{' (TLS)' if service.settings.tls else ''}")
    print(f"  docs     {url}/docs")
    print(f"  metrics  {url}/metrics")
    if service.triton is None:
        print(f"  Triton   {service.settings.triton_url}", flush=True)
    else:
        print(f"  Triton   {service.triton.http_url} (metrics {service.triton.metrics_url})", flush=True)
