"""A live conversation over the OpenAI Live API, /v1/live/sessions."""

from __future__ import annotations

import base64
import json
from typing import Any, ClassVar

from loadtest.apis import OnFrame
from loadtest.apis.rfc6455 import COMPLETED, TEXT, WebSocketConnection, masked
from loadtest.plan import Plan
from loadtest.record import Malformed
from loadtest.speech import FRAME_SIZE, RATE, Speech

_DELTA, _END = b'{"type":"session.output_audio.delta","delta":"', b'"}'
_OTHERS = ("session.output_transcript.delta", "session.usage.updated", "info")


class LiveApiClient(WebSocketConnection):
    """See LiveClient. The API takes no seed and reports no counts."""

    path: ClassVar = "/v1/live/sessions"
    frame_bytes: ClassVar = 2 * FRAME_SIZE

    def __init__(self, plan: Plan, speech: Speech, _seed: int, on_frame: OnFrame) -> None:
        super().__init__(plan)
        self._on_frame = on_frame
        self._frames = [_event("session.input_audio.append", audio=base64.b64encode(f).decode()) for f in speech.frames]
        self._index = 0
        self._closed = False

    async def send(self, u: int) -> None:
        await self.send_message(self._frames[u % len(self._frames)])

    async def finish(self) -> tuple[int, int]:
        self.write(_event("session.close"))
        if await self.close_code != COMPLETED:
            raise self.failure()
        if not self._closed:
            raise Malformed("closed as completed without session.closed")
        return 0, 0

    def on_upgraded(self) -> None:
        audio = {"format": {"type": "audio/pcm", "rate": RATE}}
        self.write(_event("session.start", session={"model": "personaplex", "audio": audio}))

    def on_text(self, message: bytes) -> None:
        # Parsing the audio as JSON would take most of the client's CPU.
        if message.startswith(_DELTA) and message.endswith(_END):
            encoded = message[len(_DELTA) : -len(_END)]
            index, self._index = self._index, self._index + 1
            self._on_frame(index, len(encoded) * 3 // 4 - encoded.count(b"=", -2))
            return
        fields: dict[str, Any] = json.loads(message)
        kind = fields["type"]
        if kind == "session.started" and not self.ready.done():
            self.ready.set_result(None)
        elif kind == "session.closed":
            self._closed = True
        elif kind == "error":
            self.error = str(fields["error"]["message"])
        elif kind not in _OTHERS:
            raise Malformed(f"an unexpected event: {kind}")


def _event(kind: str, **fields: object) -> bytes:
    return masked(TEXT, json.dumps({"type": kind, **fields}).encode())
