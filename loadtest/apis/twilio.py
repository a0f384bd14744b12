"""A telephone call as Twilio connects it, /v1/telephony/twilio: μ-law at 8 kHz, 20 ms per message."""

from __future__ import annotations

import base64
import json
from typing import Any, ClassVar

import av
import numpy as np

from loadtest.apis import OnFrame
from loadtest.apis.real_time import RealTimeConnection
from loadtest.apis.rfc6455 import COMPLETED, TEXT, masked
from loadtest.plan import Plan
from loadtest.record import Malformed
from loadtest.speech import RATE, Speech

_STREAM = "MZ00000000000000000000000000000000"
_CHUNK = 160
_SILENCE = b"\xff"
_PAYLOAD, _END = b'"payload":"', b'"}}'


class TwilioClient(RealTimeConnection):
    """See LiveClient. The protocol reports no counts."""

    path: ClassVar = "/v1/telephony/twilio"
    frame_bytes: ClassVar = 4 * _CHUNK

    def __init__(self, plan: Plan, speech: Speech, seed: int, on_frame: OnFrame) -> None:
        frames = [_media(frame) for frame in _ulaw(speech)]
        super().__init__(plan, on_frame, frames, _media(_SILENCE * self.frame_bytes))
        self._seed = seed
        self._begun = False

    async def finish(self) -> tuple[int, int]:
        await self.answered()
        self.write(_text(event="stop", streamSid=_STREAM, stop={"callSid": "CA1"}))
        if await self.close_code != COMPLETED:
            raise self.failure()
        return 0, 0

    def on_upgraded(self) -> None:
        parameters = {"seed": str(self._seed), "api_key": self._plan.api_key}
        form = {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1}
        start = {"streamSid": _STREAM, "callSid": "CA1", "customParameters": parameters, "mediaFormat": form}
        self.write(_text(event="connected", protocol="Call", version="1.0.0"))
        self.write(_text(event="start", streamSid=_STREAM, start=start))

    def on_text(self, message: bytes) -> None:
        # Parsing the audio as JSON would take most of the client's CPU.
        if message.startswith(b'{"event":"media"') and message.endswith(_END):
            encoded = message[message.index(_PAYLOAD) + len(_PAYLOAD) : -len(_END)]
            self._on_media(len(encoded) * 3 // 4 - encoded.count(b"=", -2))
            return
        fields: dict[str, Any] = json.loads(message)
        if fields["event"] != "mark":
            raise Malformed(f"an unexpected event: {fields['event']}")
        self.write(_text(event="mark", streamSid=_STREAM, mark=fields["mark"]))

    def _on_media(self, size: int) -> None:
        if self._begun:
            self.received(size)
            return
        self._begun = True
        # Its resampler holds 2 ms back, so the first frame is 20 ms shorter.
        if size != self.frame_bytes - _CHUNK:
            raise Malformed(f"a first frame of {size} bytes")
        # The same at the server: these 20 ms complete each of the following frames as soon as it arrives.
        self.write(_media(_SILENCE * _CHUNK))
        self.received(self.frame_bytes)


def _ulaw(speech: Speech) -> list[bytes]:
    """The recording in μ-law at 8 kHz: one piece of 80 ms per user frame."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=8_000)
    frame = av.AudioFrame.from_ndarray(np.frombuffer(b"".join(speech.frames), "<i2")[None], format="s16", layout="mono")
    frame.sample_rate, frame.pts = RATE, 0
    pcm = np.concatenate([part.to_ndarray()[0] for given in (frame, None) for part in resampler.resample(given)])
    size = TwilioClient.frame_bytes
    pcm = np.pad(pcm, (0, max(len(speech.frames) * size - len(pcm), 0)))[: len(speech.frames) * size]
    codec: Any = av.CodecContext.create("pcm_mulaw", "w")
    codec.sample_rate, codec.layout, codec.format = 8_000, "mono", "s16"
    whole = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
    whole.sample_rate = 8_000
    data = b"".join(map(bytes, [*codec.encode(whole), *codec.encode(None)]))
    return [data[at : at + size] for at in range(0, len(data), size)]


def _media(data: bytes) -> bytes:
    """Messages of 20 ms each."""
    chunks = (data[at : at + _CHUNK] for at in range(0, len(data), _CHUNK))
    return b"".join(
        _text(event="media", streamSid=_STREAM, media={"track": "inbound", "payload": base64.b64encode(chunk).decode()})
        for chunk in chunks
    )


def _text(**fields: object) -> bytes:
    return masked(TEXT, json.dumps(fields, separators=(",", ":")).encode())
