"""A live conversation over the OpenAI Realtime API, /v1/realtime.

The server sends audio while the agent speaks only, and no number of a frame. So the agent must speak all the time, as
that of random weights does; a user whose agent becomes silent fails.
"""

from __future__ import annotations

import base64
import json
from typing import Any, ClassVar

from loadtest.apis import OnFrame
from loadtest.apis.real_time import RealTimeConnection
from loadtest.apis.rfc6455 import CLOSE, COMPLETED, TEXT, masked
from loadtest.plan import Plan
from loadtest.record import CallFailed, Malformed
from loadtest.speech import FRAME_SIZE, Speech

_DELTA, _PAYLOAD, _END = b'"type":"response.output_audio.delta"', b'"delta":"', b'"}'
_OTHERS = (
    "session.created",
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    "response.output_audio_transcript.delta",
)


class RealtimeClient(RealTimeConnection):
    """See LiveClient. The API takes no seed and reports no counts."""

    path: ClassVar = "/v1/realtime"
    frame_bytes: ClassVar = 2 * FRAME_SIZE

    def __init__(self, plan: Plan, speech: Speech, _seed: int, on_frame: OnFrame) -> None:
        super().__init__(plan, on_frame, [_append(frame) for frame in speech.frames], _append(bytes(self.frame_bytes)))

    async def finish(self) -> tuple[int, int]:
        # The API has no end by the client: it closes when it has what it wants.
        await self.answered()
        self.write(masked(CLOSE, COMPLETED.to_bytes(2, "big")))
        if await self.close_code != COMPLETED:
            raise self.failure()
        return 0, 0

    def on_upgraded(self) -> None:
        self.write(_event("response.create"))

    def on_text(self, message: bytes) -> None:
        # Parsing the audio as JSON would take most of the client's CPU.
        if _DELTA in message[:200]:
            encoded = message[message.index(_PAYLOAD) + len(_PAYLOAD) : -len(_END)]
            self.received(len(encoded) * 3 // 4 - encoded.count(b"=", -2))
            return
        fields: dict[str, Any] = json.loads(message)
        kind = fields["type"]
        if kind == "error":
            self.error = str(fields["error"]["message"])
        elif kind == "response.output_audio.done":
            raise CallFailed("the agent became silent")
        elif kind not in _OTHERS:
            raise Malformed(f"an unexpected event: {kind}")


def _append(data: bytes) -> bytes:
    return _event("input_audio_buffer.append", audio=base64.b64encode(data).decode())


def _event(kind: str, **fields: object) -> bytes:
    return masked(TEXT, json.dumps({"type": kind, **fields}).encode())
