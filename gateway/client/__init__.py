"""The gateway's HTTP face from a caller's side: what the command line speaks to a server with."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import httpx

from gateway.errors import GatewayError

# An answer is a whole conversation long; a server that says nothing for this long is gone.
READ_TIMEOUT_S = 600.0
CONNECT_TIMEOUT_S = 5.0

Fields = Mapping[str, str]


class ClientError(GatewayError):
    """The server cannot be reached, or refused; one line, the server's own words where it said any."""


class Client:
    """Speaks to one gateway; use it as a context manager.

    Args:
        url: where it listens, as `http://127.0.0.1:8998`.
        verify: whether the certificate of an https server must be one that is trusted.
        api_key: what the server asks for, if it asks for one.
    """

    def __init__(self, url: str, *, verify: bool = True, api_key: str | None = None) -> None:
        self.url = url.rstrip("/")
        headers = {b"X-API-Key": api_key.encode()} if api_key else {}
        timeout = httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        # Proxies of the environment are for the internet, not for a server named on the command line.
        with self._explained():
            self._http = httpx.Client(
                base_url=self.url, headers=headers, timeout=timeout, trust_env=False, verify=_authorities(verify)
            )

    def respond(self, files: Mapping[str, bytes], fields: Fields) -> dict[str, Any]:
        """`POST /v1/respond`, the answer as its JSON object.

        Args:
            files: recordings by field name (`audio`, `voice_audio`), any format libsndfile reads.
            fields: the other fields of the form.

        Raises:
            ClientError: unreachable, or refused.
        """
        with self._answer("application/json", files, fields) as answer:
            body = answer.read()
            try:
                value: dict[str, Any] = answer.json()
            except ValueError:
                raise ClientError(f"{self.url} sent no JSON: {body[:80]!r}") from None
            return value

    def stream(self, files: Mapping[str, bytes], fields: Fields) -> Iterator[bytes]:
        """`POST /v1/respond` with `stream`: the pieces of a WAV as the server makes them. Raises ClientError."""
        with self._answer("audio/wav", files, {**fields, "stream": "true"}) as answer:
            yield from answer.iter_bytes()

    def ready(self) -> str | None:
        """`GET /readyz`: None when it is, else what it is waiting for, in one line."""
        try:
            with self._explained():
                answer = self._http.get("/readyz", timeout=CONNECT_TIMEOUT_S)
        except ClientError as error:
            return error.message
        return None if answer.is_success else _detail(answer)

    def close(self) -> None:
        """Ends the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _answer(self, accept: str, files: Mapping[str, bytes], fields: Fields) -> Iterator[httpx.Response]:
        parts = {name: (name, content) for name, content in files.items()}
        with (
            self._explained(),
            self._http.stream(
                "POST", "/v1/respond", headers={"Accept": accept}, files=parts, data=dict(fields)
            ) as answer,
        ):
            if not answer.is_success:
                answer.read()
                raise ClientError(_detail(answer))
            yield answer

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError as error:
            reason = str(error).partition("] ")[2] or str(error)
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise ClientError(f"{self.url}: {reason}; SSL_CERT_FILE may name who is to be trusted") from None
            raise ClientError(f"cannot reach {self.url}: {reason} (is `personaplex serve` running there?)") from None
        except httpx.TimeoutException:
            raise ClientError(f"{self.url} does not answer in time") from None
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            raise ClientError(f"{self.url!r} is no URL of a server; expected one like http://127.0.0.1:8998") from None
        except httpx.HTTPError as error:
            raise ClientError(f"{self.url} broke off the answer: {error}") from None


def _detail(answer: httpx.Response) -> str:
    """What a problem+json says, else the bare status."""
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{answer.request.url} answered {answer.status_code} {answer.reason_phrase}"


def _authorities(verify: bool) -> bool | ssl.SSLContext:
    """The usual ones, or those of the file that SSL_CERT_FILE names."""
    return ssl.create_default_context() if verify and "SSL_CERT_FILE" in os.environ else verify
