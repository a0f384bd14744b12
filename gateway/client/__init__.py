"""Python client of the REST API: `Client` and, for asyncio, `AsyncClient` with the same methods."""

from __future__ import annotations

from gateway.client.asynchronous import AsyncClient
from gateway.client.http import ClientError
from gateway.client.synchronous import Client

__all__ = ["AsyncClient", "Client", "ClientError"]
