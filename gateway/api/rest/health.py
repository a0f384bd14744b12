"""Probes and metrics: /healthz, /readyz and /metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client.exposition import choose_encoder

from gateway.api import problems
from gateway.api.rest import openapi
from gateway.api.rest.schemas import Health
from gateway.errors import Draining, EngineUnavailable
from gateway.session.runtime import Runtime


def router(runtime: Runtime) -> APIRouter:
    """Return the routes."""
    routes = APIRouter()

    @routes.get("/healthz", summary="Alive")
    async def healthz() -> Health:
        return Health(status="ok")

    @routes.get("/readyz", summary="Ready for conversations", response_model=Health, responses=openapi.READY_RESPONSES)
    async def readyz() -> Response:
        """Ready when Triton and all its models are, the personas of `warm` are prefilled, and no drain has begun."""
        if runtime.sessions.draining:
            return problems.response(Draining(runtime.settings.retry_after), runtime.settings.retry_after)
        if await runtime.warmup.ready():
            return Response(Health(status="ready").model_dump_json(), media_type="application/json")
        # Returned, not raised: raised errors are logged, and probes repeat every few seconds.
        error = EngineUnavailable("Triton or one of its models is not ready, or a persona is still being prefilled")
        return problems.response(error, runtime.settings.retry_after)

    @routes.get(
        "/metrics", summary="Metrics for Prometheus", response_class=Response, responses=openapi.METRICS_RESPONSES
    )
    async def metrics(request: Request) -> Response:
        """Prometheus' text format, or OpenMetrics, which has the ids of conversations as exemplars, if accepted."""
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(runtime.metrics.registry), media_type=media_type)

    return routes
