"""grpc.health.v1: what /readyz says, for those who ask over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from time import monotonic

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.session.runtime import Runtime

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

# Every answer takes a question to each model; several watchers share one.
_FRESH_S = 1.0


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Serving while conversations are taken, as a whole ("") and for each of `services`."""

    def __init__(self, runtime: Runtime, services: tuple[str, ...], period: float = _FRESH_S) -> None:
        """`period`: seconds between two looks of those who watch."""
        self._runtime = runtime
        self._services = ("", *services)
        self._period = period
        self._ready = False
        self._asked_at = -period
        self._asking = asyncio.Lock()

    async def Check(  # noqa: N802 (named by the .proto)
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        """The status now; NOT_FOUND for a service there is not."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service[:100]!r}")
        return health_pb2.HealthCheckResponse(status=await self._status(request.service, fresh=True))

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The status now, and again whenever it changes."""
        told = None
        while True:
            status = await self._status(request.service)
            if status != told:
                yield health_pb2.HealthCheckResponse(status=status)
                told = status
            await asyncio.sleep(self._period)

    async def _status(self, service: str, *, fresh: bool = False) -> int:
        if service not in self._services:
            return int(SERVICE_UNKNOWN)
        if not self._runtime.draining:
            async with self._asking:
                if fresh or monotonic() - self._asked_at >= self._period:
                    self._ready = await self._runtime.warmup.ready()
                    self._asked_at = monotonic()
        return int(SERVING if self._ready and not self._runtime.draining else NOT_SERVING)
