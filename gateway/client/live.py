"""What both clients share of live conversations: the messages of the WebSocket `/v1/converse`, and its errors."""

from __future__ import annotations

import json
import os
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from gateway.client.answers import LiveParams
from gateway.client.events import AgentAudio, AgentText, Ended, Event, Ready, Stats, Warning
from gateway.client.http import CONNECT_TIMEOUT_S, ClientError, ServerBusyError, refused

PATH = "/v1/converse"
END = '{"type": "end"}'
NEW_TOKEN = "new"  # noqa: S105
"""In place of a resume token, it tells the server that this client can resume a conversation."""
RECONNECT_S = 0.25
"""Seconds between two attempts to resume a conversation."""
PcmFormat = Literal["pcm_s16le", "pcm_f32le"]
_BUSY = frozenset({"at-capacity", "too-many-for-key", "draining"})
"""Codes of errors after which another attempt, perhaps at another server, can succeed."""

_EVENTS: dict[str, type[AgentText | Stats | Warning | Ended]] = {
    "text": AgentText,
    "stats": Stats,
    "warning": Warning,
    "ended": Ended,
}

Parsed = TypeVar("Parsed")


@dataclass(frozen=True, slots=True)
class Resume:
    """How to resume a conversation: its token, and the seconds for which it waits."""

    token: str
    seconds: float

    def deadline(self, lost: ConnectionClosed) -> float:
        """Return until when to try. Raises `lost` if the server has closed the connection itself."""
        if lost.rcvd is not None:
            raise lost
        return time.monotonic() + self.seconds


class ConnectOptions(TypedDict):
    """Arguments of `connect` of `websockets`, asynchronous and synchronous."""

    uri: str
    additional_headers: dict[str, str]
    ssl: ssl.SSLContext | None
    open_timeout: float
    max_size: None
    proxy: None


def connect_options(url: str, verify: bool, api_key: str | None, token: str) -> ConnectOptions:
    """Return how to connect to the server at `url`. `token`: resume token, or NEW_TOKEN."""
    context = None
    if url.startswith("https"):
        context = ssl.create_default_context()
        if not (verify or "SSL_CERT_FILE" in os.environ):
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return {
        "uri": f"ws{url.removeprefix('http')}{PATH}",
        "additional_headers": {"X-Resume-Token": token, **({"Authorization": f"Bearer {api_key}"} if api_key else {})},
        "ssl": context,
        "open_timeout": CONNECT_TIMEOUT_S,
        "max_size": None,
        "proxy": None,
    }


def resumed_params(params: LiveParams) -> LiveParams:
    """Return the parameters that a connection states which resumes a conversation."""
    return {"on_gap": params["on_gap"]} if "on_gap" in params else {}


def start_message(params: LiveParams, audio_format: PcmFormat, sample_rate: int) -> str:
    """Return the first message of a conversation."""
    return json.dumps({"type": "start", **params, "audio": {"format": audio_format, "sample_rate": sample_rate}})


class MessageReader:
    """Makes events of the server's messages. resume: how to resume the conversation, None if that is not possible."""

    def __init__(self, audio_format: PcmFormat) -> None:
        self.resume: Resume | None = None
        self._format = audio_format
        self._frames = 0

    def read(self, message: str | bytes) -> Event:
        """Return the event of a message. Raises ClientError for an `error`, and ServerBusyError if it may pass."""
        if isinstance(message, bytes):
            self._frames += 1
            return AgentAudio(self._frames - 1, _floats(message, self._format))
        content: dict[str, Any] = json.loads(message)
        kind = content.get("type")
        if kind == "error":
            raise (ServerBusyError if content["code"] in _BUSY else ClientError)(str(content["message"]))
        if kind == "ready":
            self.resume = _parsed(Resume, content["resume"]) if content.get("resume") else None
            self._frames = content.get("index", 0)
            return _parsed(Ready, {**content, "sample_rate": content["audio"]["sample_rate"]})
        if kind not in _EVENTS:
            raise ClientError(f"expected a message of {PATH}, got {message[:80]!r}")
        return _parsed(_EVENTS[kind], content)


def encode(pcm: npt.ArrayLike, audio_format: PcmFormat) -> bytes:
    """Return samples [T], float within ±1, as a binary message."""
    samples = np.asarray(pcm, np.float32)
    if audio_format == "pcm_f32le":
        return samples.astype("<f4").tobytes()
    return (samples.clip(-1.0, 1.0) * np.float32(32767)).round().astype("<i2").tobytes()


@contextmanager
def connection_errors(url: str) -> Iterator[None]:
    """Raise the errors of `websockets` as ClientError or ServerBusyError."""
    try:
        yield
    except InvalidStatus as error:
        response = error.response
        try:
            message = str(json.loads(response.body or b"")["detail"])
        except (ValueError, KeyError, TypeError):
            message = f"{url}{PATH} answered {response.status_code} {response.reason_phrase}"
        raise refused(response.status_code, message, response.headers.get("Retry-After")) from None
    except ConnectionClosed as error:
        reason = error.rcvd.reason if error.rcvd else ""
        raise ClientError(f"{url} broke off the conversation{': ' if reason else ''}{reason}") from None
    except TimeoutError:
        raise ClientError(f"{url} does not answer in time") from None
    except (OSError, WebSocketException) as error:
        raise ClientError(f"cannot reach {url}: {error} (is `personaplex serve` running there?)") from None


def _floats(message: bytes, audio_format: PcmFormat) -> npt.NDArray[np.float32]:
    if audio_format == "pcm_f32le":
        return np.frombuffer(message, "<f4").astype(np.float32)
    return np.frombuffer(message, "<i2").astype(np.float32) / np.float32(32768)


def _parsed(kind: type[Parsed], content: dict[str, Any]) -> Parsed:
    """Of a message, what the event has; later versions of the server may say more."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in content.items() if name in names})
