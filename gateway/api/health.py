"""What an orchestrator and a Prometheus ask: alive, ready, figures."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from gateway.api import openapi
from gateway.api.schemas import Health
from gateway.calls import Calls
from gateway.errors import EngineUnavailable


def router(calls: Calls) -> APIRouter:
    """/healthz, /readyz and /metrics."""
    routes = APIRouter()

    @routes.get("/healthz", summary="Alive")
    async def healthz() -> Health:
        return Health(status="ok")

    @routes.get("/readyz", summary="Ready for conversations", responses=openapi.READY_RESPONSES)
    async def readyz() -> Health:
        """Only when Triton and every one of its models is."""
        if not await calls.engine.ready():
            raise EngineUnavailable("Triton or one of its models is not ready")
        return Health(status="ready")

    @routes.get(
        "/metrics", summary="Figures for Prometheus", response_class=Response, responses=openapi.METRICS_RESPONSES
    )
    async def metrics() -> Response:
        return Response(calls.metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    return routes
