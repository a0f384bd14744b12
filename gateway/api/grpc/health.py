"""gRPC health checking and server reflection. Health is that of /readyz.

Needs no API key, so everything here is bounded: RPCs at once, and the time until the request arrives.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from gateway.errors import HandshakeTimeout, TryLater
from gateway.session.runtime import Runtime

SERVICE: str = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

MAX_RPCS = 64
"""Health and reflection RPCs at once."""
_REQUEST_S = 5.0
_REFLECTION_S = 30.0
_PERIOD_S = 1.0


class TooManyRpcs(TryLater):
    """Too many RPCs without an API key are in progress."""

    code = "too-many-rpcs"
    title = "Too many health checks"


class KeylessRpcs:
    """Counts the RPCs that need no API key."""

    def __init__(self, limit: int, retry_after: int) -> None:
        self._limit = limit
        self._retry_after = retry_after
        self._count = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count an RPC while inside. Raises TooManyRpcs."""
        if self._count >= self._limit:
            raise TooManyRpcs(f"{self._limit} health checks are in progress", self._retry_after)
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1


class Health:
    """The state of the server as a whole ("") and of each of `services`."""

    def __init__(self, runtime: Runtime, services: tuple[str, ...], rpcs: KeylessRpcs) -> None:
        self._runtime = runtime
        self._services = ("", *services)
        self._rpcs = rpcs

    async def check(self, context: grpc.aio.ServicerContext) -> health_pb2.HealthCheckResponse:
        """Return the status now. Aborts with NOT_FOUND for an unknown service. Raises TooManyRpcs, HandshakeTimeout."""
        with self._rpcs.one():
            service = await _service(context)
            if service not in self._services:
                await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {service[:100]!r}")
            return health_pb2.HealthCheckResponse(status=await self._status(service))

    async def watch(self, context: grpc.aio.ServicerContext) -> None:
        """Send the status now and after every change. Raises TooManyRpcs, HandshakeTimeout."""
        with self._rpcs.one():
            service = await _service(context)
            sent = None
            while True:
                status = await self._status(service)
                if status != sent:
                    await context.write(health_pb2.HealthCheckResponse(status=status))
                    sent = status
                await asyncio.sleep(_PERIOD_S)

    async def _status(self, service: str) -> int:
        if service not in self._services:
            return int(SERVICE_UNKNOWN)
        ready = not self._runtime.sessions.draining and await self._runtime.warmup.ready()
        return int(SERVING if ready and not self._runtime.sessions.draining else NOT_SERVING)


class Reflection(ReflectionServicer):  # type: ignore[misc]
    """Server reflection within the same bounds."""

    def __init__(self, services: tuple[str, ...], rpcs: KeylessRpcs) -> None:
        super().__init__(services)
        self._rpcs = rpcs

    async def ServerReflectionInfo(  # noqa: N802 (named by the .proto)
        self, request_iterator: AsyncIterator[object], unused_context: grpc.aio.ServicerContext
    ) -> AsyncIterator[object]:
        """Respond to requests for at most 30 s."""
        try:
            with self._rpcs.one():
                async with asyncio.timeout(_REFLECTION_S):
                    async for response in super().ServerReflectionInfo(request_iterator, unused_context):
                        yield response
        except TooManyRpcs as error:
            await unused_context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, error.message)
        except TimeoutError:
            await unused_context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"reflection ends after {_REFLECTION_S:g} s")


async def _service(context: grpc.aio.ServicerContext) -> str:
    """Return the service that the request names."""
    try:
        async with asyncio.timeout(_REQUEST_S):
            request = await context.read()
    except TimeoutError:
        raise HandshakeTimeout(f"expected a request within {_REQUEST_S:g} s, got nothing") from None
    return "" if request is grpc.aio.EOF else str(request.service)
