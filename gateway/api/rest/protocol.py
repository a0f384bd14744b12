"""uvicorn's HTTP protocol with limits on connections and time, and a way for answers to abort their connection."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.api.disconnect import ABORT

# For the first byte and for the headers of a request.
_HEADERS_S = 20.0
# For the rest of a body after its answer: it is discarded, so that the client reads the answer instead of a reset.
_DISCARD_S = 10.0


class AnswerProtocol(HttpToolsProtocol):
    """For `uvicorn.Config(http=...)`."""

    max_connections = 1024
    """Connections of the server, those of WebSockets included; one more is closed."""
    _timer: asyncio.TimerHandle | None = None
    _receiving = False

    @classmethod
    def limited_to(cls, connections: int) -> type[AnswerProtocol]:
        """The protocol of a server with at most so many connections."""
        return type(cls.__name__, (cls,), {"max_connections": connections})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Extend uvicorn's: limit the number of connections and the time of the headers."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.abort()
        else:
            self._limit(_HEADERS_S)

    def on_message_begin(self) -> None:
        """Extend uvicorn's: let the app abort the connection."""
        super().on_message_begin()
        cast(dict[str, Any], self.scope)["extensions"] = {ABORT: self.transport.abort}
        self._receiving = True
        self._limit(_HEADERS_S)

    def on_headers_complete(self) -> None:
        """Extend uvicorn's: the body has the app's own time limit."""
        self._limit(None)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Extend uvicorn's: the request is complete."""
        self._receiving = False
        self._limit(None)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Extend uvicorn's: limit the time of a body that was answered before it was read."""
        super().on_response_complete()
        if self._receiving:
            self._limit(_DISCARD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Extend uvicorn's."""
        self._limit(None)
        super().connection_lost(exc)

    def _limit(self, seconds: float | None) -> None:
        """Abort the connection after so many seconds, unless this is called again before."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)
