"""Cancel work when the client disconnects; abort connections of clients that stop reading."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

from starlette.types import Receive, Scope

T = TypeVar("T")

ABORT = "personaplex.abort"
"""Scope extension: a function that closes the connection at once and discards unsent data. Not all servers have it."""


class ClientGone(Exception):  # noqa: N818 (an event, not an error)
    """The client disconnected before the response."""


def abort(scope: Scope) -> None:
    """Discard unsent data and close the connection, if the server supports it."""
    if (cut := scope.get("extensions", {}).get(ABORT)) is not None:
        cut()


async def while_connected(receive: Receive, work: Coroutine[object, object, T]) -> T:
    """Return the result of `work`. If the client disconnects first, cancel `work`, wait for it and raise ClientGone.

    The request's body must have been read: until then `receive` yields parts of the body.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
