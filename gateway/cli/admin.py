"""`personaplex admin drain|undrain|status|sessions|end`: operate a running gateway over its operator API."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.admin_address import admin_address
from gateway.cli.console import CommandError

if TYPE_CHECKING:
    import httpx

_TIMEOUT_S = 10.0

app = typer.Typer(rich_markup_mode="markdown")

Listen = Annotated[
    str | None,
    typer.Option(
        "--listen",
        metavar="SOCKET|HOST:PORT",
        envvar="PERSONAPLEX_ADMIN_LISTEN",
        help="Where the operator API listens. [default: the Unix socket of the gateway on --port]",
    ),
]
Port = Annotated[
    int, typer.Option("--port", envvar="PERSONAPLEX_PORT", help="Public HTTP port; it names the default socket.")
]


@app.command()
def drain(listen: Listen = None, port: Port = 8998) -> None:
    """Stop accepting conversations; existing ones may continue for the drain time. Returns at once."""
    _print(_request("POST", "/admin/drain", listen, port))


@app.command()
def undrain(listen: Listen = None, port: Port = 8998) -> None:
    """Accept conversations again."""
    _print(_request("POST", "/admin/undrain", listen, port))


@app.command()
def status(listen: Listen = None, port: Port = 8998) -> None:
    """Print slots, free slots and whether the gateway serves or drains, as JSON."""
    _print(_request("GET", "/admin/status", listen, port))


@app.command()
def sessions(listen: Listen = None, port: Port = 8998) -> None:
    """Print the sessions that hold a slot, oldest first, as JSON."""
    _print(_request("GET", "/admin/sessions", listen, port))


@app.command()
def end(
    session_id: Annotated[str, typer.Argument(help="Id of the session.")], listen: Listen = None, port: Port = 8998
) -> None:
    """End one session; its client receives the reason `drained`."""
    _request("DELETE", f"/admin/sessions/{session_id}", listen, port)


def _request(method: str, path: str, listen: str | None, port: int) -> httpx.Response:
    """Send a request to the operator API. Raises CommandError."""
    import httpx

    try:
        address = admin_address(listen, port)
    except ValueError as error:
        raise CommandError(str(error)) from None
    if address is None:
        raise CommandError("the operator API is switched off (admin_listen is none)")
    host = f"[{address.host}]" if ":" in address.host else address.host
    url = f"http://{host}:{address.port}" if address.path is None else "http://localhost"
    transport = httpx.HTTPTransport(uds=None if address.path is None else str(address.path))
    try:
        with httpx.Client(transport=transport, base_url=url, timeout=_TIMEOUT_S, trust_env=False) as client:
            response = client.request(method, path)
    except httpx.TransportError as error:
        raise CommandError(f"cannot reach the operator API at {address}: {error}") from None
    if response.is_error:
        raise CommandError(_detail(response))
    return response


def _detail(response: httpx.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"the operator API answered HTTP {response.status_code}"


def _print(response: httpx.Response) -> None:
    answer: Any = response.json()
    print(json.dumps(answer, indent=2))
