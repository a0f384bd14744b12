"""Callers who hang up, whose work then ends, and callers who are hung up on."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

from starlette.types import Receive, Scope

T = TypeVar("T")

ABORT = "personaplex.abort"
"""In the scope's extensions, where the server offers it: cuts the connection off without waiting for anything."""


class ClientGone(Exception):  # noqa: N818 (not an error of anybody's)
    """The caller hung up; there is nobody left to answer."""


def abort(scope: Scope) -> None:
    """Drop what is not sent yet, and the connection; not every server can."""
    if (cut := scope.get("extensions", {}).get(ABORT)) is not None:
        cut()


async def while_connected(receive: Receive, work: Coroutine[object, object, T]) -> T:
    """The result of `work`; if the caller hangs up first, `work` is cancelled, waited for, and ClientGone raised.

    The request's body must have been read: until then what `receive` gives is not a disconnect.
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
