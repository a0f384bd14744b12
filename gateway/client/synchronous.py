"""The synchronous client."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import httpx

from gateway.client.http import (
    CONNECT_TIMEOUT_S,
    READ_TIMEOUT_S,
    ClientError,
    Fields,
    json_object,
    options,
    problem,
    respond_request,
    transport_errors,
)


class Client:
    """A connection to one server; a context manager.

    Args:
        url: address of the server, for example `http://127.0.0.1:8998`.
        verify: whether the certificate of an https server must be trusted.
        api_key: API key that the requests carry.
        read_timeout: seconds without data after which a request fails.

    All methods raise ClientError if the server is unreachable or refuses the request.
    """

    def __init__(
        self, url: str, *, verify: bool = True, api_key: str | None = None, read_timeout: float = READ_TIMEOUT_S
    ) -> None:
        self.url = url.rstrip("/")
        with transport_errors(self.url):
            self._http = httpx.Client(**options(self.url, verify, api_key, read_timeout))

    def respond(self, files: Mapping[str, bytes], fields: Fields) -> dict[str, Any]:
        """Send a recording and return the answer: `POST /v1/respond` as JSON.

        Args:
            files: recordings by field name (`audio`, `voice_audio`), in any format that libsndfile reads.
            fields: the other fields of the form.
        """
        with self._respond("application/json", files, fields) as response:
            response.read()
            return json_object(response)

    def stream(self, files: Mapping[str, bytes], fields: Fields) -> Iterator[bytes]:
        """As `respond`, and yield a WAV in pieces as the server computes it."""
        with self._respond("audio/wav", files, {**fields, "stream": "true"}) as response:
            yield from response.iter_bytes()

    def voices(self) -> dict[str, Any]:
        """Return the voice presets: `GET /v1/voices`."""
        with transport_errors(self.url):
            return json_object(self._http.get("/v1/voices"))

    def ready(self) -> str | None:
        """Return None if the server is ready, else the reason in one line: `GET /readyz`."""
        try:
            with transport_errors(self.url):
                response = self._http.get("/readyz", timeout=CONNECT_TIMEOUT_S)
        except ClientError as error:
            return error.message
        return None if response.is_success else problem(response)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _respond(self, accept: str, files: Mapping[str, bytes], fields: Fields) -> Iterator[httpx.Response]:
        with (
            transport_errors(self.url),
            self._http.stream(**respond_request(accept, files, fields)) as response,
        ):
            if not response.is_success:
                response.read()
                raise ClientError(problem(response))
            yield response
