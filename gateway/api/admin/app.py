"""The operator API: drain, undrain, list sessions, end one, status. It is never part of the public HTTP API."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal

from fastapi import Depends, FastAPI, Request
from pydantic import BaseModel, Field

from gateway.api import problems
from gateway.errors import NotAllowed, UnknownConversation
from gateway.session.runtime import Runtime
from gateway.telemetry.metrics import Api

# Hosts that a request may name: an attacker's DNS name that resolves to this machine is not among them.
_LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]", "personaplex"})


class Status(BaseModel):
    """State of the gateway."""

    status: Literal["serving", "draining"]
    ready: bool = Field(description="what /readyz states")
    slots: int
    active: int = Field(description="slots that are taken")
    free: int
    upload_bytes: int = Field(description="bytes of request bodies in flight")


class Session(BaseModel):
    """A session that holds a slot."""

    id: str
    kind: Literal["live", "turn", "recorded"]
    api: Api
    voice: str
    began: float = Field(description="Unix time in seconds")


class Sessions(BaseModel):
    """All sessions, oldest first."""

    sessions: list[Session]


def create_admin_app(runtime: Runtime, host: str = "") -> FastAPI:
    """Build the application; `host` is a TCP host name that requests may address besides the loopback names."""
    app = FastAPI(
        title="PersonaPlex operator API",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        dependencies=[Depends(_checked_origin({*_LOCAL_HOSTS, host.lower(), f"[{host.lower()}]"}))],
    )

    async def status() -> Status:
        admission = runtime.admission
        return Status(
            status="draining" if runtime.sessions.draining else "serving",
            ready=not runtime.sessions.draining and await runtime.warmup.ready(),
            slots=admission.slots,
            active=admission.taken,
            free=admission.slots - admission.taken,
            upload_bytes=admission.upload_bytes,
        )

    @app.get("/admin/status")
    async def get_status() -> Status:
        return await status()

    @app.post("/admin/drain", status_code=202)
    async def drain() -> Status:
        """Stop accepting conversations; existing ones may continue for the drain time. Returns at once."""
        runtime.sessions.begin_drain()
        return await status()

    @app.post("/admin/undrain")
    async def undrain() -> Status:
        """Accept conversations again. Raises NotAllowed if the server is stopping."""
        if not runtime.sessions.cancel_drain():
            raise NotAllowed("the server is stopping; this drain cannot be cancelled")
        return await status()

    @app.get("/admin/sessions")
    async def sessions() -> Sessions:
        return Sessions(
            sessions=[
                Session(id=info.id, kind=info.kind, api=info.api, voice=info.voice, began=info.began)
                for info in runtime.sessions.running()
            ]
        )

    @app.delete("/admin/sessions/{session_id}", status_code=204)
    async def end(session_id: str) -> None:
        """End a session with the reason `drained`. Raises UnknownConversation."""
        if not runtime.sessions.end(session_id):
            raise UnknownConversation(f"no session {session_id[:64]!r}")

    problems.install(app, runtime.settings.retry_after)
    return app


def _checked_origin(hosts: set[str]) -> Callable[[Request], Awaitable[None]]:
    """Refuse requests from web pages, which browsers send on behalf of any site."""

    async def check(request: Request) -> None:
        if "origin" in request.headers or "sec-fetch-site" in request.headers:
            raise NotAllowed("web pages may not use the operator API")
        host = request.headers.get("host", "").lower()
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if name not in hosts:
            raise NotAllowed(f"requests must address the operator API by its configured host, not {host[:100]!r}")

    return check
