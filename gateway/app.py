"""Build the ASGI application of the gateway's public APIs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from opentelemetry.trace import NoOpTracerProvider, TracerProvider, get_tracer
from starlette.concurrency import run_in_threadpool

from gateway import page
from gateway.api import problems
from gateway.api.asyncapi import install as install_schemas
from gateway.api.grpc.server import GrpcServer
from gateway.api.openai import live, realtime, schemas
from gateway.api.requests import Requests
from gateway.api.rest import health, openapi
from gateway.api.rest import routes as rest
from gateway.api.telephony import call as telephony
from gateway.api.telephony import schemas as telephony_schemas
from gateway.api.websocket import chat, converse
from gateway.engine.backend import Backend
from gateway.engine.triton.backend import TritonBackend
from gateway.manifest import Manifest
from gateway.session.runtime import Runtime
from gateway.settings import Settings
from gateway.telemetry import traces
from gateway.telemetry.metrics import Metrics

_DESCRIPTION = "Full-duplex speech-to-speech conversations: send user audio, receive the agent's audio."


def create_app(
    settings: Settings | None = None,
    backend: Backend | None = None,
    manifest: Manifest | None = None,
    tracer_provider: TracerProvider | None = None,
) -> FastAPI:
    """Build the app for one built repository. Arguments that are None are read or made from the environment.

    Raises RepositoryError if `settings.models` is not a usable built repository, KeysFileError, TracesUnavailable, and
    what `gateway.session.warmup.prefix_of` raises for `settings.warm`.
    """
    settings = settings or Settings()
    manifest = manifest or Manifest.load(settings.models)
    backend = backend or TritonBackend(
        settings.triton_url,
        manifest,
        step_deadline=settings.step_deadline,
        prefill_deadline=settings.prefill_deadline,
        release_deadline=settings.release_deadline,
    )
    exporting = traces.exporting_provider() if settings.traces else None
    tracer = get_tracer(traces.NAME, tracer_provider=tracer_provider or exporting or NoOpTracerProvider())
    runtime = Runtime(settings, manifest, backend, Metrics(manifest.slots), tracer)
    grpc = GrpcServer(runtime)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # Starlette writes large files of forms in these threads. Their first use imports modules for 50 ms of CPU time,
        # in which the event loop would send no frames.
        await run_in_threadpool(bool)
        warming = asyncio.create_task(runtime.warmup.keep())
        try:
            if (port := settings.grpc_listen_port) is not None:
                await grpc.start(settings.host, port, settings.tls)
            yield
        finally:
            warming.cancel()
            await asyncio.wait([warming])
            await grpc.stop()
            await runtime.close()
            if exporting is not None:
                # Sends the last spans.
                await asyncio.to_thread(exporting.shutdown)

    app = FastAPI(
        title="PersonaPlex",
        version=manifest.project_version,
        description=_DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        # `gateway.api.rest.openapi` serves both, without a CDN.
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.include_router(rest.router(runtime))
    app.include_router(health.router(runtime))
    app.include_router(page.router())
    app.include_router(chat.router(runtime))
    app.include_router(converse.router(runtime))
    app.include_router(live.router(runtime))
    app.include_router(telephony.router(runtime))
    app.include_router(realtime.router(runtime))
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "X-API-Key", "Content-Type"],
            expose_headers=["*"],
        )
    app.add_middleware(Requests)
    problems.install(app, settings.retry_after)
    openapi.install(app, runtime)
    install_schemas(app, [converse.CHANNEL, *chat.CHANNELS, *schemas.CHANNELS, *telephony_schemas.CHANNELS])
    app.state.runtime = runtime
    app.state.grpc = grpc
    return app
