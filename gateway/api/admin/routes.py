"""What an operator tells a running gateway, from the machine it runs on."""

from __future__ import annotations

import ipaddress

from fastapi import APIRouter, Request

from gateway.api.access import check_origin
from gateway.api.rest import openapi
from gateway.api.rest.schemas import Draining
from gateway.errors import NotAllowed
from gateway.session.runtime import Runtime


def router(runtime: Runtime) -> APIRouter:
    """The routes under /admin, for callers on the loopback address only."""
    routes = APIRouter(prefix="/admin")

    @routes.post("/drain", status_code=202, summary="Take no new conversations", responses=openapi.DRAIN_RESPONSES)
    async def drain(request: Request) -> Draining:
        """Be not ready, refuse new conversations, let those there are go on for the drain time, then end them.

        Answers at once, also when asked again: ask until `active` is 0, then stop the server.
        """
        if not _is_loopback(request.client.host if request.client else None):
            raise NotAllowed("draining may only be asked for from the machine itself")
        # What a page asks comes from its reader's machine, which may be this one. Origins that may call may not drain.
        check_origin(request.headers)
        runtime.begin_drain()
        return Draining(status="draining", active=runtime.admission.taken)

    return routes


def _is_loopback(host: str | None) -> bool:
    try:
        return host is not None and ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
