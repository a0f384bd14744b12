"""`personaplex serve`: Triton and the gateway, until a signal."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError

from gateway.cli.console import CommandError, say
from gateway.settings import Settings

if TYPE_CHECKING:
    from gateway.cli.service import Service

_log = logging.getLogger("personaplex")

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# An embedded Triton is given the minutes it takes to read a real checkpoint; one that runs elsewhere should be there.
WAIT_EMBEDDED_S = 900.0
WAIT_EXTERNAL_S = 60.0

LogLevel = Literal["debug", "info", "warning", "error"]


def serve(
    models: Annotated[Path, typer.Argument(help="Folder written by `personaplex build`.")],
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0 picks a free one. [default: 8998]")] = None,
    grpc_port: Annotated[
        int | None,
        typer.Option(min=-1, max=65535, help="For gRPC; 0 picks a free one, -1 is none. [default: the port + 1]"),
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(help="PEM file with certificate and chain: TLS on both ports.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file with the certificate's key.")] = None,
    warm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VOICE[:PROMPT]",
            help="Prefill this persona before the server is ready, so that its first call starts as fast as later "
            "ones; may be given several times. PROMPT is the name of a preset prompt, or a text.",
        ),
    ] = None,
    triton: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", envvar="PERSONAPLEX_TRITON_URL", help="Use the Triton that runs there (its HTTP port)."
        ),
    ] = None,
    wait: Annotated[float | None, typer.Option(min=0, help="Seconds until everything must be ready.")] = None,
    drain: Annotated[
        float | None, typer.Option(min=0, help="Seconds conversations may go on once stopped. [default: 30]")
    ] = None,
    log_level: Annotated[LogLevel, typer.Option(help="What to tell on stderr.")] = "warning",
) -> None:
    """Serve a repository over HTTP and gRPC: Triton and the gateway, until SIGINT or SIGTERM.

    Stopped, it takes no new conversations, and lets those there are go on for a while; a second signal cuts that short.
    """
    from gateway.cli.service import Service

    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
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
    )
    for name in Settings.unknown(os.environ):
        _log.warning("%s is no setting of this version: nothing reads it", name)
    if "PERSONAPLEX_API_KEY" in os.environ and not settings.api_keys:
        _log.warning("PERSONAPLEX_API_KEY is the key that a caller shows; the server asks for none of its own")
    default_wait = WAIT_EMBEDDED_S if triton is None else WAIT_EXTERNAL_S
    service = Service(
        settings,
        external_triton=triton is not None,
        wait=default_wait if wait is None else wait,
        on_step=say,
    )
    run_until_signal(service, lambda: _announce(service))


class Stopped(BaseException):
    """A signal asked us to stop; raised in the main thread wherever it waits."""


def run_until_signal(service: Service, on_ready: Callable[[], None]) -> None:
    """Starts the service, calls `on_ready`, and stops it at the first signal; a second one cuts the stop short.

    Raises:
        CommandError: the gateway ended by itself.
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
        say("stopping")
        service.stop()
    else:
        service.stop()
        raise CommandError("the gateway ended by itself; its log says why")
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


def settings_with(**given: object) -> Settings:
    """The environment's settings with what the command line gives (not None) over them. Raises CommandError."""
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
    """For a service that only this command speaks to: a free port of this machine, no gRPC, neither keys nor TLS."""
    settings = settings_with(models=models, host="127.0.0.1", port=0, grpc_port=-1, api_keys=[], **given)
    return settings.model_copy(update={"tls_certificate": None, "tls_key": None})


def checked_address(address: str | None) -> str | None:
    """HOST:PORT as it came. Raises CommandError for anything else."""
    if address is not None:
        host, _, port = address.rpartition(":")
        if not host or "/" in address or not port.isdecimal() or not 0 < int(port) < 65536:
            raise CommandError(f"--triton: expected HOST:PORT, got {address!r}")
    return address


def _announce(service: Service) -> None:
    url = service.url
    print(f"PersonaPlex is ready: {url}")
    print(f"  ask      POST {url}/v1/respond")
    if service.grpc_target:
        print(f"  gRPC     {service.grpc_target}{' (TLS)' if service.settings.tls else ''}")
    print(f"  docs     {url}/docs")
    print(f"  metrics  {url}/metrics")
    if service.triton is None:
        print(f"  Triton   {service.settings.triton_url}", flush=True)
    else:
        print(f"  Triton   {service.triton.http_url} (metrics {service.triton.metrics_url})", flush=True)
