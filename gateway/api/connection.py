"""One WebSocket: who may open it, whole messages in and out, and how it is closed."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import Headers, QueryParams
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send
from websockets.frames import CloseCode

from gateway.api.access import check_origin, presented_key
from gateway.api.disconnect import abort
from gateway.errors import PayloadTooLarge
from gateway.session.caller import Caller
from gateway.session.live import TransportClosed
from gateway.session.runtime import Runtime
from gateway.telemetry.metrics import Api
from gateway.telemetry.requests import HEADER, request_id

SUBPROTOCOL = "personaplex.v1"
KEY_SUBPROTOCOL = "personaplex.key."
"""Prefix of an API key as a subprotocol, for pages, which cannot set headers. Best offered beside SUBPROTOCOL."""
_KEY_SUBPROTOCOLS = (KEY_SUBPROTOCOL, "openai-insecure-api-key.")

RESUME_SUBPROTOCOL = "personaplex.resume."
"""Prefix of a resume token as a subprotocol, for pages."""
RESUME_HEADER = "x-resume-token"

# RFC 6455 section 5.5: a control frame has 125 bytes, two of them for the code.
_REASON_BYTES = 123


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

    def url(self, public: str | None) -> str:
        """Return the URL that the client has opened. `public`: this server's as clients see it; None: by `Host`."""
        base = f"wss://{self.headers.get('host', '')}" if public is None else public.rstrip("/")
        query = self._scope["query_string"].decode("latin-1")
        return f"{base}{self._scope['path']}{'?' if query else ''}{query}"

    async def accept(self, subprotocol: str | None = SUBPROTOCOL) -> None:
        """Complete the opening handshake, so that messages can be sent. `subprotocol`: chosen if it is offered.

        Raises TransportClosed.
        """
        await self._opened()
        chosen = subprotocol if subprotocol in self._offered else None
        # A browser that offered subprotocols fails the connection if none is chosen.
        ours = (KEY_SUBPROTOCOL, RESUME_SUBPROTOCOL)
        chosen = chosen or next((name for name in self._offered if name.startswith(ours)), None)
        await self._put({"type": "websocket.accept", "subprotocol": chosen, "headers": [_request_header()]})

    async def deny(self, response: Response) -> None:
        """Answer the opening handshake with an HTTP response instead. Raises TransportClosed."""
        await self._opened()
        prefix, headers = "websocket.http.response", [*response.raw_headers, _request_header()]
        await self._put({"type": f"{prefix}.start", "status": response.status_code, "headers": headers})
        await self._put({"type": f"{prefix}.body", "body": response.body})

    def authenticate(self, runtime: Runtime, api: Api) -> Caller:
        """Check the page's origin and the API key; return who calls over `api`.

        Raises NotAllowed for the origin, Unauthorized for the key.
        """
        check_origin(self.headers, runtime.settings.allowed_origins)
        key = presented_key(self.headers)
        if key is None:
            pairs = ((name, prefix) for name in self._offered for prefix in _KEY_SUBPROTOCOLS)
            key = next((name.removeprefix(prefix) for name, prefix in pairs if name.startswith(prefix)), None)
        return Caller(api, runtime.keys.check(key))

    @property
    def resume_token(self) -> str | None:
        """The resume token in the header or a subprotocol; NEW_TOKEN if the client can resume a session; or None."""
        prefix = RESUME_SUBPROTOCOL
        offered = (name.removeprefix(prefix) for name in self._offered if name.startswith(prefix))
        return self.headers.get(RESUME_HEADER) or next(offered, None)

    async def receive(self) -> str | bytes:
        """Return the next message, text or binary. Raises PayloadTooLarge, TransportClosed."""
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            raise TransportClosed(message.get("code") != CloseCode.ABNORMAL_CLOSURE)
        data = message.get("bytes")
        received: str | bytes = message["text"] if data is None else data
        if len(received) > self._max_message_bytes:
            raise PayloadTooLarge(f"expected messages of at most {self._max_message_bytes} bytes, got {len(received)}")
        return received

    async def send(self, message: str | bytes) -> None:
        """Send a message; return once there is room for more. Raises TransportClosed."""
        kind = "text" if isinstance(message, str) else "bytes"
        await self._put({"type": "websocket.send", kind: message})

    async def close(self, code: int, reason: str = "") -> None:
        """Send a close frame. Raises TransportClosed."""
        fitting = reason.encode()[:_REASON_BYTES].decode(errors="ignore")
        await self._put({"type": "websocket.close", "code": code, "reason": fitting})

    def abort(self) -> None:
        """Discard unsent data and close the connection, if the server supports that."""
        abort(self._scope)

    async def _opened(self) -> None:
        if (await self._receive())["type"] != "websocket.connect":
            raise TransportClosed

    async def _put(self, message: dict[str, Any] | Message) -> None:
        try:
            await self._send(message)
        except (OSError, RuntimeError) as error:
            # Servers raise OSError after the client's close, and RuntimeError after their own: for a missing pong or a
            # message that breaks the protocol.
            raise TransportClosed from error


def _request_header() -> tuple[bytes, bytes]:
    return HEADER.encode(), (request_id() or "").encode()
