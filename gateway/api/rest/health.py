"""What an orchestrator and a Prometheus ask: alive, ready, figures."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from gateway.api.rest import openapi, problems
from gateway.api.rest.schemas import Health
from gateway.errors import Draining, EngineUnavailable
from gateway.session.runtime import Runtime


def router(runtime: Runtime) -> APIRouter:
    """/healthz, /readyz and /metrics."""
    routes = APIRouter()

    @routes.get("/healthz", summary="Alive")
    async def healthz() -> Health:
        return Health(status="ok")

    @routes.get("/readyz", summary="Ready for conversations", response_model=Health, responses=openapi.READY_RESPONSES)
    async def readyz() -> Response:
        """Only when Triton and each of its models is, personas are warm, and the server is not about to stop."""
        if runtime.sessions.draining:
            return problems.response(Draining(runtime.settings.retry_after), runtime.settings.retry_after)
        if await runtime.warmup.ready():
            return Response(Health(status="ready").model_dump_json(), media_type="application/json")
        # Returned, not raised: a probe that says no every few seconds is nothing to log.
        error = EngineUnavailable("Triton or one of its models is not ready, or a persona is still being prefilled")
        return problems.response(error, runtime.settings.retry_after)

    @routes.get(
        "/metrics", summary="Figures for Prometheus", response_class=Response, responses=openapi.METRICS_RESPONSES
    )
    async def metrics() -> Response:
        return Response(runtime.metrics.text(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    return routes
