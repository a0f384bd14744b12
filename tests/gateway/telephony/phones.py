"""The other end of a call: what each service sends, and a strict reading of what it receives."""

from __future__ import annotations

import base64
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

Message = str | bytes


@dataclass(frozen=True)
class Audio:
    data: bytes


@dataclass(frozen=True)
class Mark:
    name: str


@dataclass(frozen=True)
class Answer:
    pass


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Phone(ABC):
    """One call. `encoding`, `rate`: of both directions; `streams`: ids of the stream in the start messages."""

    service: ClassVar[str]
    formats: ClassVar[list[tuple[str, int]]]
    subprotocols: ClassVar[list[str] | None] = None

    def __init__(self, encoding: str | None = None, rate: int | None = None) -> None:
        default = self.formats[0]
        self.encoding, self.rate = encoding or default[0], rate or default[1]
        self.sent = 0
        self.streams: list[object] = []

    @property
    def path(self) -> str:
        return f"/v1/telephony/{self.service}"

    @property
    def frame_bytes(self) -> int:
        return self.rate // 50 * (2 if self.encoding == "pcm_s16le" else 1)

    @abstractmethod
    def hello(self, **parameters: str) -> list[Message]:
        """Everything up to the start of the call, with parameters as the service sends them."""

    @abstractmethod
    def media(self, data: bytes) -> Message: ...

    @abstractmethod
    def dtmf(self, digit: str) -> Message: ...

    @abstractmethod
    def played(self, name: str) -> Message:
        """A mark that comes back."""

    def stop(self) -> Message | None:
        """The end of the call; None if it is the close of the connection."""
        return None

    def others(self) -> list[Message]:
        """The other messages of the service, and one that it may have in future."""
        return []

    @abstractmethod
    def read(self, message: Message) -> Audio | Mark | Answer:
        """Check a message of the server, field by field, as Twilio does."""


class _Json(Phone):
    """JSON text messages with base64."""

    def _loaded(self, message: Message) -> dict[str, Any]:
        assert isinstance(message, str)
        fields: dict[str, Any] = json.loads(message)
        return fields

    def stop(self) -> Message | None:
        return json.dumps({"event": "stop"})


class Twilio(_Json):
    service = "twilio"
    formats: ClassVar = [("ulaw", 8000)]

    def hello(self, **parameters: str) -> list[Message]:
        self.streams.append("MZ1")
        start = {
            "streamSid": "MZ1", "accountSid": "AC1", "callSid": "CA1", "tracks": ["inbound"],
            "customParameters": parameters,
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
        }  # fmt: skip
        connected = {"event": "connected", "protocol": "Call", "version": "1.0.0"}
        return [
            json.dumps(connected),
            json.dumps({"event": "start", "sequenceNumber": "1", "start": start, "streamSid": "MZ1"}),
        ]

    def media(self, data: bytes) -> Message:
        self.sent += 1
        media = {"track": "inbound", "chunk": str(self.sent), "timestamp": "5", "payload": encoded(data)}
        return json.dumps({"event": "media", "sequenceNumber": "3", "media": media, "streamSid": "MZ1"})

    def dtmf(self, digit: str) -> Message:
        dtmf = {"track": "inbound_track", "digit": digit}
        return json.dumps({"event": "dtmf", "streamSid": "MZ1", "sequenceNumber": "5", "dtmf": dtmf})

    def played(self, name: str) -> Message:
        return json.dumps({"event": "mark", "sequenceNumber": "4", "streamSid": "MZ1", "mark": {"name": name}})

    def stop(self) -> Message | None:
        stop = {"accountSid": "AC1", "callSid": "CA1"}
        return json.dumps({"event": "stop", "sequenceNumber": "5", "stop": stop, "streamSid": "MZ1"})

    def others(self) -> list[Message]:
        outbound = {"track": "outbound", "chunk": "1", "timestamp": "5", "payload": encoded(b"\0" * 160)}
        return [json.dumps({"event": "media", "media": outbound}), json.dumps({"event": "news", "news": [1]})]

    def read(self, message: Message) -> Audio | Mark | Answer:
        fields = self._loaded(message)
        assert fields["streamSid"] in self.streams
        if fields["event"] == "media":
            assert set(fields) == {"event", "streamSid", "media"}
            assert set(fields["media"]) == {"payload"}
            return Audio(base64.b64decode(fields["media"]["payload"], validate=True))
        assert set(fields) == {"event", "streamSid", "mark"}
        assert fields["event"] == "mark"
        (name,) = fields["mark"].values()
        return Mark(name)


class Telnyx(_Json):
    service = "telnyx"
    formats: ClassVar = [("ulaw", 8000), ("alaw", 8000), ("pcm_s16le", 16000), ("pcm_s16le", 24000)]
    _names: ClassVar = {"ulaw": "PCMU", "alaw": "PCMA", "pcm_s16le": "L16"}

    def hello(self, **parameters: str) -> list[Message]:
        start = {
            "user_id": "u", "call_control_id": "v2:c", "from": "+1", "to": "+2", "custom_parameters": parameters,
            "media_format": {"encoding": self._names[self.encoding], "sample_rate": self.rate, "channels": 1},
        }  # fmt: skip
        return [
            json.dumps({"event": "connected", "version": "1.0.0"}),
            json.dumps({"event": "start", "sequence_number": "1", "start": start, "stream_id": "S1"}),
        ]

    def media(self, data: bytes) -> Message:
        self.sent += 1
        media = {"track": "inbound", "chunk": str(self.sent), "timestamp": "5", "payload": encoded(data)}
        return json.dumps({"event": "media", "sequence_number": "4", "media": media, "stream_id": "S1"})

    def dtmf(self, digit: str) -> Message:
        return json.dumps({"event": "dtmf", "stream_id": "S1", "occurred_at": "2026", "dtmf": {"digit": digit}})

    def played(self, name: str) -> Message:
        return json.dumps({"event": "mark", "stream_id": "S1", "mark": {"name": name}})

    def others(self) -> list[Message]:
        outbound = {"track": "outbound", "chunk": "1", "timestamp": "5", "payload": encoded(b"\0" * 160)}
        error = {"code": 100003, "title": "malformed_frame", "detail": "x"}
        return [
            json.dumps({"event": "media", "media": outbound}),
            json.dumps({"event": "error", "payload": error}),
            json.dumps({"event": "news"}),
        ]

    def read(self, message: Message) -> Audio | Mark | Answer:
        fields = self._loaded(message)
        if fields["event"] == "media":
            assert set(fields) == {"event", "media"}
            assert set(fields["media"]) == {"payload"}
            return Audio(base64.b64decode(fields["media"]["payload"], validate=True))
        assert fields["event"] == "mark"
        assert set(fields) == {"event", "mark"}
        (name,) = fields["mark"].values()
        return Mark(name)


class Plivo(_Json):
    service = "plivo"
    formats: ClassVar = [("ulaw", 8000), ("pcm_s16le", 8000), ("pcm_s16le", 16000)]
    _names: ClassVar = {"ulaw": "audio/x-mulaw", "pcm_s16le": "audio/x-l16"}

    def hello(self, **parameters: str) -> list[Message]:
        """Names of extra headers have letters and digits only."""
        self.streams.append("s")
        start = {
            "callId": "c", "streamId": "s", "accountId": "a", "tracks": ["inbound"],
            "mediaFormat": {"encoding": self._names[self.encoding], "sampleRate": self.rate},
        }  # fmt: skip
        extra = ";".join(f"{name.replace('_', '')}={value}" for name, value in parameters.items())
        return [json.dumps({"event": "start", "sequenceNumber": 1, "start": start, "extra_headers": extra})]

    def media(self, data: bytes) -> Message:
        self.sent += 1
        media = {"track": "inbound", "timestamp": "17", "chunk": self.sent, "payload": encoded(data)}
        return json.dumps({"event": "media", "sequenceNumber": 42, "streamId": "s", "media": media})

    def dtmf(self, digit: str) -> Message:
        dtmf = {"track": "inbound", "digit": digit, "timestamp": "17"}
        return json.dumps({"event": "dtmf", "sequenceNumber": 9, "streamId": "s", "dtmf": dtmf})

    def played(self, name: str) -> Message:
        return json.dumps({"event": "playedStream", "sequenceNumber": 9, "streamId": "s", "name": name})

    def others(self) -> list[Message]:
        return [
            json.dumps({"event": "clearedAudio", "sequenceNumber": 7, "streamId": "s"}),
            json.dumps({"event": "news"}),
        ]

    def read(self, message: Message) -> Audio | Mark | Answer:
        fields = self._loaded(message)
        assert fields["streamId"] in self.streams
        if fields["event"] == "playAudio":
            assert set(fields) == {"event", "streamId", "media"}
            media = fields["media"]
            assert (media["contentType"], media["sampleRate"]) == (self._names[self.encoding], self.rate)
            assert set(media) == {"contentType", "sampleRate", "payload"}
            return Audio(base64.b64decode(media["payload"], validate=True))
        assert fields["event"] == "checkpoint"
        assert set(fields) == {"event", "streamId", "name"}
        return Mark(fields["name"])


class Vonage(Phone):
    service = "vonage"
    formats: ClassVar = [("pcm_s16le", 16000), ("pcm_s16le", 8000), ("pcm_s16le", 24000)]

    def hello(self, **parameters: str) -> list[Message]:
        content_type = f"audio/l16;rate={self.rate}"
        return [json.dumps({"event": "websocket:connected", "content-type": content_type, **parameters})]

    def media(self, data: bytes) -> Message:
        return data

    def dtmf(self, digit: str) -> Message:
        return json.dumps({"event": "websocket:dtmf", "digit": digit, "duration": 260})

    def played(self, name: str) -> Message:
        return json.dumps({"event": "websocket:notify", "payload": {"mark": name}})

    def others(self) -> list[Message]:
        nested = {"event": "websocket:dtmf", "dtmf": {"digit": "7"}}
        return [json.dumps(nested), json.dumps({"event": "websocket:cleared"}), json.dumps({"event": "news"})]

    def read(self, message: Message) -> Audio | Mark | Answer:
        if isinstance(message, bytes):
            assert len(message) == self.frame_bytes
            return Audio(message)
        fields = json.loads(message)
        assert set(fields) == {"action", "payload"}
        assert fields["action"] == "notify"
        (name,) = fields["payload"].values()
        return Mark(name)


class Asterisk(Phone):
    """With JSON control messages."""

    service = "asterisk"
    formats: ClassVar = [
        ("slin16", 16000), ("ulaw", 8000), ("alaw", 8000), ("slin", 8000), ("slin12", 12000), ("slin24", 24000)
    ]  # fmt: skip
    subprotocols: ClassVar = ["media"]

    @property
    def frame_bytes(self) -> int:
        return self.rate // 50 * (2 if self.encoding.startswith("slin") else 1)

    def event(self, name: str, **fields: object) -> str:
        return json.dumps({"event": name, "channel_id": "pbx1-1.9", **fields})

    def hello(self, **parameters: str) -> list[Message]:
        """Parameters are in the URL."""
        assert not parameters
        start: dict[str, object] = {
            "connection_id": "e2", "channel": "WebSocket/c/0x1", "format": self.encoding,
            "optimal_frame_size": self.frame_bytes, "ptime": 20,
        }  # fmt: skip
        return [self.event("MEDIA_START", **start)]

    def media(self, data: bytes) -> Message:
        return data

    def dtmf(self, digit: str) -> Message:
        return self.event("DTMF_END", digit=digit)

    def played(self, name: str) -> Message:
        return self.event("MEDIA_MARK_PROCESSED", correlation_id=name)

    def others(self) -> list[Message]:
        status = {"queue_length": 43, "xon_level": 800, "xoff_level": 900, "queue_full": False, "bulk_media": True}
        return [
            self.event("STATUS", **status),
            self.event("QUEUE_DRAINED"),
            self.event("MEDIA_BUFFERING_COMPLETED", correlation_id="x"),
            self.event("NEWS"),
        ]

    def command(self, message: str) -> dict[str, str]:
        fields: dict[str, str] = json.loads(message)
        return fields

    def read(self, message: Message) -> Audio | Mark | Answer:
        if isinstance(message, bytes):
            assert len(message) % self.frame_bytes == 0
            assert len(message) <= 65_500
            return Audio(message)
        fields = self.command(message)
        if fields["command"] == "ANSWER":
            assert set(fields) == {"command"}
            return Answer()
        assert fields["command"] == "MARK_MEDIA"
        assert set(fields) == {"command", "correlation_id"}
        return Mark(fields["correlation_id"])


class PlainAsterisk(Asterisk):
    """With control messages of plain text, which have no marks."""

    def event(self, name: str, **fields: object) -> str:
        return " ".join([name, *(f"{field}:{value}" for field, value in fields.items())])

    def command(self, message: str) -> dict[str, str]:
        assert message == "ANSWER"
        return {"command": message}


PHONES: list[type[Phone]] = [Twilio, Telnyx, Plivo, Vonage, Asterisk, PlainAsterisk]
