"""WebSockets `/v1/telephony/…`: the state machine of a telephone call, the same for all services.

    handshake → (start) → session → end

Authentication and the reservation of a slot come before the handshake is answered, so that a full server answers 503
and the service goes on with the call at once. Only an API key that a service cannot send in a header comes in its
start message; then the slot is taken when that has arrived.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from time import monotonic

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.types import Receive, Scope, Send

from gateway.api import problems
from gateway.api.access import check_origin, presented_key
from gateway.api.connection import Connection
from gateway.api.loop_share import LoopShare
from gateway.api.telephony.asterisk import AsteriskSerializer
from gateway.api.telephony.plivo import PlivoSerializer
from gateway.api.telephony.serializer import (
    AudioFormat,
    CallEvent,
    Dtmf,
    Media,
    Played,
    Serializer,
    ServiceError,
    Start,
    Stop,
)
from gateway.api.telephony.telnyx import TelnyxSerializer
from gateway.api.telephony.twilio import TwilioSerializer
from gateway.api.telephony.vonage import VonageSerializer
from gateway.audio.duplex import DuplexCodec
from gateway.errors import AudioError, GatewayError, HandshakeTimeout, InvalidRequest, NotAllowed, Unauthorized
from gateway.session.admission import Slot
from gateway.session.caller import Caller
from gateway.session.events import AgentAudio, Event, Ready
from gateway.session.input_queue import InputQueue
from gateway.session.limits import LiveLimits
from gateway.session.live import TransportClosed
from gateway.session.params import LiveParams, PersonaParams, invalid_params
from gateway.session.request import run_live_session
from gateway.session.runtime import Runtime

logger = logging.getLogger(__name__)

PATH = "/v1/telephony"
SERIALIZERS: tuple[type[Serializer], ...] = (
    TwilioSerializer,
    TelnyxSerializer,
    PlivoSerializer,
    VonageSerializer,
    AsteriskSerializer,
)

MAX_MESSAGE_BYTES = 65_536
"""Size limit of a message: 6 s of μ-law in base64. Services send 20 ms at once. Parsing it takes at most 10 ms."""

# Services play what they receive, so audio that is sent ahead of its time delays the agent for the rest of the call.
_LEAD_FRAMES = 2

# One mark per second; a service that returns none must not make the server keep more.
_MARK_FRAMES = 12
_MARKS = 64

_NORMAL_CLOSURE = 1000

# Parameters may have no underscores: some services allow letters and digits only.
_PARAMETERS = {name.replace("_", ""): name for name in (*PersonaParams.model_fields, "api_key")}


def router(runtime: Runtime) -> APIRouter:
    """Make the routes, to be included in an app."""
    routes = APIRouter()
    for kind in SERIALIZERS:
        endpoint = TelephoneEndpoint(runtime, kind)
        routes.add_websocket_route(f"{PATH}/{kind.service}", endpoint, name=kind.service)  # type: ignore[arg-type]
    return routes


class TelephoneEndpoint:
    """ASGI application of one service's route."""

    def __init__(self, runtime: Runtime, kind: type[Serializer]) -> None:
        self._runtime = runtime
        self._kind = kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection. Never raises for what the client does."""
        runtime, kind = self._runtime, self._kind
        limit = min(runtime.settings.max_message_bytes, MAX_MESSAGE_BYTES)
        connection = Connection(scope, receive, send, limit)
        slot: Slot | None = None
        with suppress(TransportClosed), ExitStack() as reserved:
            try:
                caller = _authenticate(connection, runtime, kind)
                if caller is not None:
                    slot = reserved.enter_context(runtime.admission.reserve(caller))
            except GatewayError as refusal:
                logger.info("%s: handshake refused: %s", kind.service, refusal.message)
                await connection.deny(problems.response(refusal, runtime.settings.retry_after))
                return
            await connection.accept(kind.subprotocol)
            await TelephoneCall(connection, runtime, kind()).serve(caller, slot)


def _authenticate(connection: Connection, runtime: Runtime, kind: type[Serializer]) -> Caller | None:
    """Check the opening handshake; None if an API key must come in the start. Raises NotAllowed or Unauthorized.

    Where the service signs and its secret is configured, the signature decides, and no API key is needed.
    """
    settings, headers = runtime.settings, connection.headers
    check_origin(headers, settings.allowed_origins)
    if secrets := kind.secrets(settings):
        url = connection.url(settings.public_url)
        if not any(kind.signed(headers, url, secret) for secret in secrets):
            raise NotAllowed(f"expected a signature of {kind.service} for {url}")
        return Caller(kind.service)
    presented = (headers.get(kind.key_header) if kind.key_header else None) or presented_key(headers)
    try:
        return Caller(kind.service, runtime.keys.check(presented))
    except Unauthorized:
        if presented is None and kind.key_in_start:
            return None
        raise


def _parameters(given: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters of a call that this server knows, by their names in the other APIs."""
    known: dict[str, str] = {}
    for name, value in given.items():
        found = _PARAMETERS.get(name.lower().replace("_", "").replace("-", ""))
        # An empty value means "not set", except for `text_prompt`, where it means "no prompt".
        if found is not None and (value or found == "text_prompt"):
            known[found] = value
    return known


def _validate(parameters: dict[str, str]) -> LiveParams:
    try:
        return LiveParams.model_validate({**parameters, "on_gap": "silence"})
    except ValidationError as error:
        raise invalid_params(error) from None


class TelephoneCall:
    """One call, over the messages of its service. See `LiveTransport`."""

    def __init__(self, connection: Connection, runtime: Runtime, serializer: Serializer) -> None:
        self._connection = connection
        self._runtime = runtime
        self._serializer = serializer
        self._share = LoopShare()
        self._codec: DuplexCodec
        self._name: str = serializer.service
        self._format: AudioFormat
        self._undecoded = bytearray()
        self._decoded = 0
        self._unsent = b""
        self._marks: deque[tuple[str, float]] = deque(maxlen=_MARKS)
        self._longest_lag = 0.0

    async def serve(self, caller: Caller | None, slot: Slot | None) -> None:
        """Wait for the start of the call, run the session and close. Raises TransportClosed."""
        connection, runtime = self._connection, self._runtime
        try:
            start = await self._receive_start(runtime.settings.handshake_seconds)
            if start is None:
                await connection.close(_NORMAL_CLOSURE)
                return
            self._name = f"{self._serializer.service} {start.call[:64]}"
            # Keys do not belong into URLs, which proxies log.
            in_url, given = _parameters(connection.query), _parameters(start.parameters)
            in_url.pop("api_key", None)
            api_key = given.pop("api_key", None)
            if caller is None:
                caller = Caller(self._serializer.service, runtime.keys.check(api_key))
            params = _validate({**in_url, **given})
            self._format = start.format
            self._codec = DuplexCodec(start.format.encoding, start.format.rate, runtime.manifest.sample_rate)
            limits = replace(LiveLimits.of(runtime.settings), lead_frames=_LEAD_FRAMES, early_frames=_LEAD_FRAMES)
            ended = await run_live_session(self, params, runtime, caller, limits, slot)
        except GatewayError as refusal:
            if slot is not None:
                slot.cancel()
            logger.info("call %s refused: %s", self._name, refusal.message)
            await connection.close(refusal.close_code, refusal.message)
            return
        lag = self._longest_lag
        logger.info("call %s ended: %s; longest playback lag %.2f s", self._name, ended.reason.value, lag)
        # The slot is free before the close frame is sent.
        code = ended.error.close_code if ended.error is not None else ended.reason.close_code
        await connection.close(code, ended.message)

    async def receive(self, audio: InputQueue) -> None:
        """Read messages until the service disconnects, which raises TransportClosed. Raises GatewayError."""
        while True:
            message = await self._share.wait(self._connection.receive())
            for event in self._serializer.parse(message):
                await self._handle(event, audio)
            await self._share.pause_if_due()

    async def send(self, event: Event) -> None:
        """Send audio, and a mark about once a second. The services have no messages for warnings and errors."""
        if isinstance(event, AgentAudio):
            self._unsent += self._codec.encode(event.frame.pcm)
            whole = len(self._unsent) - len(self._unsent) % self._format.frame_bytes
            data, self._unsent = self._unsent[:whole], self._unsent[whole:]
            if data:
                for message in self._serializer.media(data):
                    await self._connection.send(message)
            if event.frame.index % _MARK_FRAMES == 0:
                await self._send_mark(str(event.frame.index))
        elif isinstance(event, Ready):
            logger.info("call %s is conversation %s", self._name, event.conversation_id)
            for message in self._serializer.answer():
                await self._connection.send(message)

    def abort(self) -> None:
        """Close the connection at once, without sending what is queued."""
        self._connection.abort()

    async def _receive_start(self, seconds: float) -> Start | None:
        """Return the start of the call, or None if it ends before. Raises GatewayError, TransportClosed."""
        try:
            async with asyncio.timeout(seconds):
                while True:
                    message = await self._share.wait(self._connection.receive())
                    for event in self._serializer.parse(message):
                        if isinstance(event, Start):
                            return event
                        if isinstance(event, Stop):
                            return None
                    await self._share.pause_if_due()
        except TimeoutError:
            raise HandshakeTimeout(f"no start of the call came within {seconds:g} s") from None

    async def _handle(self, event: CallEvent, audio: InputQueue) -> None:
        if isinstance(event, Media):
            await self._add(event.data, audio)
        elif isinstance(event, Stop):
            if not audio.closed:
                await self._decode(audio)
                await audio.put(self._codec.finish_input())
                audio.close()
        elif isinstance(event, Dtmf):
            # A digit may be part of a card number or a PIN.
            logger.info("call %s: a key was pressed", self._name)
            logger.debug("call %s: key %.8r", self._name, event.digit)
        elif isinstance(event, Played):
            self._on_played(event.mark)
        elif isinstance(event, ServiceError):
            logger.info("call %s: the service reports an error: %s", self._name, event.message)
        elif isinstance(event, Start):
            raise InvalidRequest("the call has started already")

    async def _add(self, data: bytes, audio: InputQueue) -> None:
        """Add audio; decode it once it can complete a user frame, because each call of the codec is expensive."""
        if len(data) % self._format.sample_bytes:
            raise AudioError(f"expected whole samples of {self._format.sample_bytes} bytes, got {len(data)} bytes")
        self._undecoded += data
        manifest = self._runtime.manifest
        missing = manifest.frame_size - self._decoded % manifest.frame_size
        samples = len(self._undecoded) // self._format.sample_bytes
        if samples * manifest.sample_rate >= missing * self._format.rate:
            await self._decode(audio)

    async def _decode(self, audio: InputQueue) -> None:
        data, codec = bytes(self._undecoded), self._codec
        self._undecoded.clear()
        for at in range(0, len(data), codec.piece_bytes):
            if audio.closed:
                return
            pcm = codec.decode(data[at : at + codec.piece_bytes])
            self._decoded += len(pcm)
            await audio.put(pcm)
            await self._share.pause_if_due()

    async def _send_mark(self, name: str) -> None:
        self._marks.append((name, monotonic()))
        for message in self._serializer.mark(name):
            await self._connection.send(message)

    def _on_played(self, name: str) -> None:
        """Measure how long after its frame was sent a mark came back. Marks before it did not."""
        while any(mark == name for mark, _ in self._marks):
            mark, sent_at = self._marks.popleft()
            if mark == name:
                self._longest_lag = max(self._longest_lag, monotonic() - sent_at)
