"""One WebSocket as the live faces see it: who may open it, whole messages in and out, and how it ends."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import Headers, QueryParams
from starlette.types import Message, Receive, Scope, Send

from gateway.api.access import check_origin, presented_key
from gateway.api.rest.disconnect import abort
from gateway.errors import PayloadTooLarge
from gateway.session.keys import KeyHolder
from gateway.session.runtime import Runtime

SUBPROTOCOL = "personaplex.v1"
KEY_SUBPROTOCOL = "personaplex.key."
"""A page cannot set headers on a WebSocket: it offers its API key as a subprotocol, best beside SUBPROTOCOL."""

# RFC 6455 section 5.5: a control frame has 125 bytes, two of them for the code.
_REASON_BYTES = 123


class Gone(Exception):  # noqa: N818 (no error: callers hang up)
    """The other side's connection is no more."""


class Connection:
    """The server's end of one WebSocket. One task may receive while another sends."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_message_bytes: int) -> None:
        self.headers = Headers(scope=scope)
        self.query = QueryParams(scope["query_string"])
        self._offered: list[str] = scope.get("subprotocols", [])
        self._scope = scope
        self._receive = receive
        self._send = send
        self._max_message_bytes = max_message_bytes

    async def accept(self) -> None:
        """Say yes, so that what may be wrong can be told in a message. Raises Gone."""
        if (await self._receive())["type"] != "websocket.connect":
            raise Gone
        chosen = SUBPROTOCOL if SUBPROTOCOL in self._offered else None
        # A browser takes no answer without a subprotocol once it has offered some.
        chosen = chosen or next((name for name in self._offered if name.startswith(KEY_SUBPROTOCOL)), None)
        await self._put({"type": "websocket.accept", "subprotocol": chosen, "headers": []})

    def caller(self, runtime: Runtime) -> KeyHolder | None:
        """Whose key came along; None where none is needed. Raises NotAllowed for the page, Unauthorized for the key."""
        check_origin(self.headers, runtime.settings.allowed_origins)
        key = presented_key(self.headers)
        if key is None:
            found = (name for name in self._offered if name.startswith(KEY_SUBPROTOCOL))
            key = next((name.removeprefix(KEY_SUBPROTOCOL) for name in found), None)
        return runtime.keys.check(key)

    async def receive(self) -> str | bytes | None:
        """The next message, text or binary; None once the other side has closed. Raises PayloadTooLarge."""
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            return None
        data = message.get("bytes")
        came: str | bytes = message["text"] if data is None else data
        if len(came) > self._max_message_bytes:
            raise PayloadTooLarge(f"expected messages of at most {self._max_message_bytes} bytes, got {len(came)}")
        return came

    async def send(self, message: str | bytes) -> None:
        """Returns when there is room for more. Raises Gone."""
        kind = "text" if isinstance(message, str) else "bytes"
        await self._put({"type": "websocket.send", kind: message})

    async def close(self, code: int, reason: str = "") -> None:
        """The closing handshake, our half. Raises Gone."""
        fitting = reason.encode()[:_REASON_BYTES].decode(errors="ignore")
        await self._put({"type": "websocket.close", "code": code, "reason": fitting})

    def abort(self) -> None:
        """Drop what is not sent yet, and the connection; not every server can."""
        abort(self._scope)

    async def _put(self, message: dict[str, Any] | Message) -> None:
        try:
            await self._send(message)
        except (OSError, RuntimeError) as error:
            # Servers raise OSError when the other side went first, and RuntimeError when they closed on their own:
            # for a late pong, or a message that breaks the protocol.
            raise Gone from error
