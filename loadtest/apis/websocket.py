"""A live conversation over the WebSocket /v1/converse."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from loadtest.apis import OnFrame
from loadtest.apis.rfc6455 import BINARY, COMPLETED, TEXT, WebSocketConnection, masked
from loadtest.plan import Plan
from loadtest.record import Malformed
from loadtest.speech import FRAME_SIZE, RATE, Speech


class WebSocketClient(WebSocketConnection):
    """See LiveClient."""

    path: ClassVar = "/v1/converse"
    frame_bytes: ClassVar = 2 * FRAME_SIZE

    def __init__(self, plan: Plan, speech: Speech, seed: int, on_frame: OnFrame) -> None:
        super().__init__(plan)
        self._on_frame = on_frame
        self._start = json.dumps({"type": "start", "seed": seed, "audio": {"format": "pcm_s16le", "sample_rate": RATE}})
        self._frames = [masked(BINARY, frame) for frame in speech.frames]
        self._index = 0
        self._ended: dict[str, Any] | None = None

    async def send(self, u: int) -> None:
        await self.send_message(self._frames[u % len(self._frames)])

    async def finish(self) -> tuple[int, int]:
        self.write(masked(TEXT, b'{"type":"end"}'))
        if await self.close_code != COMPLETED:
            raise self.failure()
        ended = self._ended
        if ended is None or ended["reason"] != "completed":
            raise Malformed("closed as completed without an `ended` message of reason completed")
        return int(ended["dropped_frames"]), int(ended["late_frames"])

    def on_upgraded(self) -> None:
        self.write(masked(TEXT, self._start.encode()))

    def on_binary(self, message: bytes) -> None:
        if not self.ready.done():
            raise Malformed("audio before ready")
        index, self._index = self._index, self._index + 1
        self._on_frame(index, len(message))

    def on_text(self, message: bytes) -> None:
        fields: dict[str, Any] = json.loads(message)
        kind = fields["type"]
        if kind == "ready" and not self.ready.done():
            audio = fields["audio"]
            if (audio["format"], audio["sample_rate"], fields["frame_size"]) != ("pcm_s16le", RATE, FRAME_SIZE):
                raise Malformed(f"unexpected audio format: {audio}, {fields['frame_size']} samples per frame")
            self.ready.set_result(None)
        elif kind == "ended":
            self._ended = fields
            self.error = self.error or str(fields["message"])
        elif kind == "error":
            self.error = str(fields["message"])
        elif kind not in ("text", "stats", "warning"):
            raise Malformed(f"an unexpected message: {kind}")
