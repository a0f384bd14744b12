"""The client for asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
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


class AsyncClient:
    """A connection to one server; an asynchronous context manager.

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
            self._http = httpx.AsyncClient(**options(self.url, verify, api_key, read_timeout))

    async def respond(self, files: Mapping[str, bytes], fields: Fields) -> dict[str, Any]:
        """Send a recording and return the answer: `POST /v1/respond` as JSON.

        Args:
            files: recordings by field name (`audio`, `voice_audio`), in any format that libsndfile reads.
            fields: the other fields of the form.
        """
        async with self._respond("application/json", files, fields) as response:
            await response.aread()
            return json_object(response)

    async def stream(self, files: Mapping[str, bytes], fields: Fields) -> AsyncIterator[bytes]:
        """As `respond`, and yield a WAV in pieces as the server computes it."""
        async with self._respond("audio/wav", files, {**fields, "stream": "true"}) as response:
            async for piece in response.aiter_bytes():
                yield piece

    async def voices(self) -> dict[str, Any]:
        """Return the voice presets: `GET /v1/voices`."""
        with transport_errors(self.url):
            return json_object(await self._http.get("/v1/voices"))

    async def ready(self) -> str | None:
        """Return None if the server is ready, else the reason in one line: `GET /readyz`."""
        try:
            with transport_errors(self.url):
                response = await self._http.get("/readyz", timeout=CONNECT_TIMEOUT_S)
        except ClientError as error:
            return error.message
        return None if response.is_success else problem(response)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @asynccontextmanager
    async def _respond(self, accept: str, files: Mapping[str, bytes], fields: Fields) -> AsyncIterator[httpx.Response]:
        with transport_errors(self.url):
            async with self._http.stream(**respond_request(accept, files, fields)) as response:
                if not response.is_success:
                    await response.aread()
                    raise ClientError(problem(response))
                yield response
