"""Work for a caller who may hang up: it goes on exactly as long as somebody is listening."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

from starlette.types import Receive

T = TypeVar("T")


class ClientGone(Exception):  # noqa: N818 (not an error of anybody's)
    """The caller hung up; there is nobody left to answer."""


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
