"""What both clients share: requests of the REST API, their responses and errors."""

from __future__ import annotations

import os
import random
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypedDict

import httpx

from gateway.client.answers import Answer, RespondParams
from gateway.errors import GatewayError

READ_TIMEOUT_S = 600.0
"""Between two parts of a response. A response that is not streamed arrives when the whole answer is computed."""

CONNECT_TIMEOUT_S = 5.0


class ClientError(GatewayError):
    """The server is unreachable or refused the request; one line, the server's own message if it sent one."""


class ServerBusyError(ClientError):
    """The server takes no more conversations for now. `retry_after`: seconds after which to try again."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Retry:
    """Waits between attempts at a busy server, for `seconds` in all."""

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds

    def delay(self, busy: ServerBusyError) -> float:
        """Return the seconds until the next attempt, spread so that clients do not come back together.

        Raises `busy` if the time is over.
        """
        seconds = busy.retry_after * random.uniform(0.5, 1.5)
        if time.monotonic() + seconds > self._deadline:
            raise busy
        return seconds


def refusal(response: httpx.Response) -> ClientError:
    """Return the error of a response that was read and is not a success."""
    return refused(response.status_code, problem(response), response.headers.get("Retry-After"))


def refused(status: int, message: str, after: str | None) -> ClientError:
    """Return the error of an HTTP status; `after` is the value of the header Retry-After."""
    if status in (429, 503) and after:
        return ServerBusyError(message, float(after) if after.isdecimal() else 1.0)
    return ClientError(message)


class Options(TypedDict):
    """Arguments of `httpx.Client` and `httpx.AsyncClient`."""

    base_url: str
    headers: dict[bytes, bytes]
    timeout: httpx.Timeout
    trust_env: bool
    verify: bool | ssl.SSLContext


class Upload(TypedDict):
    """Arguments of `stream` of an `httpx` client."""

    method: str
    url: str
    headers: dict[str, str]
    files: dict[str, tuple[str, bytes]]
    data: dict[str, str | list[str]]


def options(url: str, verify: bool, api_key: str | None, read_timeout: float) -> Options:
    """Return the options of an `httpx` client for the server at `url`."""
    return {
        "base_url": url,
        "headers": {b"X-API-Key": api_key.encode()} if api_key else {},
        "timeout": httpx.Timeout(read_timeout, connect=CONNECT_TIMEOUT_S),
        # Proxies from the environment are for the internet, not for a server that is named explicitly.
        "trust_env": False,
        "verify": ssl.create_default_context() if verify and "SSL_CERT_FILE" in os.environ else verify,
    }


def respond_request(audio: bytes, params: RespondParams, *, streams: bool) -> Upload:
    """Return `POST /v1/respond` as a multipart form: for a WAV that is streamed, or for an answer in JSON."""
    values: dict[str, Any] = {**params, **({"stream": True} if streams else {})}
    files = {"audio": audio} | ({"voice_audio": values.pop("voice_audio")} if "voice_audio" in values else {})
    return {
        "method": "POST",
        "url": "/v1/respond",
        "headers": {"Accept": "audio/wav" if streams else "application/json"},
        "files": {name: (name, content) for name, content in files.items()},
        "data": {name: _form_value(value) for name, value in values.items()},
    }


def _form_value(value: object) -> str | list[str]:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, str | int | float) else list(value)  # type: ignore[call-overload]


def answer_of(response: httpx.Response) -> Answer:
    """Return the answer in a response that was read. Raises ClientError."""
    body = json_object(response)
    try:
        return Answer.of(body)
    except (ValueError, TypeError) as error:
        raise ClientError(f"{_server(response)} sent no answer: {error}") from None


def json_object(response: httpx.Response) -> dict[str, Any]:
    """Return the JSON object of a response that was read. Raises ClientError for an error status or another body."""
    if not response.is_success:
        raise ClientError(problem(response))
    try:
        value: dict[str, Any] = response.json()
    except ValueError:
        raise ClientError(f"{_server(response)} sent no JSON: {response.content[:80]!r}") from None
    return value


def problem(response: httpx.Response) -> str:
    """Return the detail of a problem+json body, or else the status."""
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{response.request.url} answered {response.status_code} {response.reason_phrase}"


@contextmanager
def transport_errors(url: str) -> Iterator[None]:
    """Raise the errors of `httpx` as ClientError."""
    try:
        yield
    except httpx.ConnectError as error:
        reason = str(error).partition("] ")[2] or str(error)
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise ClientError(f"{url}: {reason}; set SSL_CERT_FILE to trust a private authority") from None
        raise ClientError(f"cannot reach {url}: {reason} (is `personaplex serve` running there?)") from None
    except httpx.TimeoutException:
        raise ClientError(f"{url} does not answer in time") from None
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        raise ClientError(f"{url!r} is not a server's URL; expected for example http://127.0.0.1:8998") from None
    except httpx.HTTPError as error:
        raise ClientError(f"{url} broke off the response: {error}") from None


def _server(response: httpx.Response) -> str:
    return str(response.request.url.copy_with(raw_path=b"/")).rstrip("/")
