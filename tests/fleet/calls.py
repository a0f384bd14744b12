"""Short calls of every API, each with its outcome and the times at which it was begun and answered."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from time import monotonic
from typing import Any

import grpc
import httpx
import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.api.grpc.personaplex.v1.personaplex_pb2_grpc import PersonaPlexStub
from gateway.audio.wav import wav
from gateway.client.grpc_pool import RETRIABLE, begin
from tests.fleet.fleet import ProcessorWaits

FRAMES = 3
_FRAME = bytes(3840)
_QUESTION = wav(np.zeros(FRAMES * 1920, np.float32), 24_000)
_LONG_QUESTION = wav(np.zeros(5 * 24_000, np.float32), 24_000)
"""240 kB: more than HAProxy could repeat with its own size of buffers, 16 kB."""
_SECONDS = 30.0
_GONE = ("connection failure", "Stream removed")
_CLOSE_SECONDS = 0.3
"""Envoy closes a connection one second after the pod has closed it. Callers do not wait for that."""


class Outcome(StrEnum):
    """What became of a call. BROKEN: it ended without its regular end."""

    COMPLETED = "completed"
    REFUSED = "refused"
    BROKEN = "broken"


@dataclass(frozen=True)
class Result:
    """One call. `answered`: when it was accepted or refused. `waited`: seconds that a refusal waited for processors."""

    api: str
    began: float
    answered: float
    outcome: Outcome
    ended: float
    waited: float
    detail: str = ""


Talk = Callable[[ClientConnection], Awaitable[None]]


async def _converse(client: ClientConnection) -> None:
    await client.send('{"type": "start"}')
    for _ in range(FRAMES):
        await client.send(_FRAME)
    await client.send('{"type": "end"}')
    kinds = [json.loads(message)["type"] async for message in client if isinstance(message, str)]
    assert kinds[0] == "ready"
    assert kinds[-1] == "ended"


async def _chat(client: ClientConnection) -> None:
    assert await client.recv() == b"\x00"
    await client.recv()


async def _live(client: ClientConnection) -> None:
    await client.send('{"type": "session.start", "session": {"model": "gpt-live-1"}}')
    await client.send(json.dumps({"type": "session.input_audio.append", "audio": b64encode(_FRAME).decode()}))
    await client.send('{"type": "session.close"}')
    kinds = [json.loads(message)["type"] async for message in client]
    assert kinds[0] == "session.started"
    assert kinds[-1] == "session.closed"


async def _realtime(client: ClientConnection) -> None:
    assert json.loads(await client.recv())["type"] == "session.created"


async def _telephony(client: ClientConnection) -> None:
    await client.send('{"event": "connected", "protocol": "Call", "version": "1.0.0"}')
    await asyncio.sleep(0.02)


WEBSOCKETS: dict[str, tuple[str, Talk]] = {
    "converse": ("/v1/converse", _converse),
    "chat": ("/api/chat", _chat),
    "gated chat": ("/gated/api/chat", _chat),
    "live": ("/v1/live/sessions", _live),
    "realtime": ("/v1/realtime?model=gpt-realtime", _realtime),
    "telephony": ("/v1/telephony/twilio", _telephony),
}
_RECORDINGS = {"rest": _QUESTION, "rest, 5 s": _LONG_QUESTION}
HTTP_APIS = (*WEBSOCKETS, *_RECORDINGS)
GRPC_APIS = ("Converse", "Respond", "RespondStream")


def _refused(status: int, body: bytes) -> bool:
    """Whether pods have refused the request. Envoy answers 503 as well if a pod ended without an answer."""
    return status == 503 and b"connection termination" not in body


async def http_call(api: str, address: str, client: httpx.AsyncClient, waits: ProcessorWaits) -> Result:
    """Make a call over REST or a WebSocket."""
    waited = waits.since_now()
    began = answered = monotonic()
    detail = ""
    try:
        async with asyncio.timeout(_SECONDS):
            if (recording := _RECORDINGS.get(api)) is not None:
                response = await client.post(
                    f"http://{address}/v1/respond",
                    files={"audio": ("question.wav", recording)},
                    data={"max_steps": str(FRAMES)},
                )
                answered = monotonic()
                refused = _refused(response.status_code, response.content)
                outcome = Outcome.REFUSED if refused else Outcome.BROKEN
                if response.status_code == 200:
                    outcome = Outcome.COMPLETED
                detail = response.text[:200] if outcome is Outcome.BROKEN else ""
            else:
                path, talk = WEBSOCKETS[api]
                url = f"ws://{address}{path}"
                async with connect(url, compression=None, proxy=None, close_timeout=_CLOSE_SECONDS) as connection:
                    answered = monotonic()
                    await talk(connection)
                outcome = Outcome.COMPLETED
    except InvalidStatus as error:
        answered = monotonic()
        refused = _refused(error.response.status_code, error.response.body or b"")
        outcome = Outcome.REFUSED if refused else Outcome.BROKEN
        detail = str(error)
    except (
        ConnectionClosed,
        InvalidHandshake,
        httpx.TransportError,
        OSError,
        TimeoutError,
        AssertionError,
        IndexError,
    ) as error:
        outcome, detail = Outcome.BROKEN, f"{type(error).__name__}: {error}"
    ended = monotonic()
    return Result(api, began, answered, outcome, ended, waited() if outcome is Outcome.REFUSED else 0.0, detail)


async def _messages(accepted: asyncio.Event) -> AsyncIterator[pb.ConverseRequest]:
    yield pb.ConverseRequest(start=pb.Start())
    await accepted.wait()
    for _ in range(FRAMES):
        yield pb.ConverseRequest(audio=_FRAME)
    yield pb.ConverseRequest(end=pb.End())


_RESPOND = pb.RespondRequest(audio=_QUESTION, max_steps=FRAMES)


async def grpc_call(api: str, channel: grpc.aio.Channel, rounds: int, waits: ProcessorWaits) -> Result:
    """Make a call over gRPC, with so many rounds of attempts."""
    stub = PersonaPlexStub(channel)
    accepted = asyncio.Event()

    def start() -> Any:
        request = _messages(accepted) if api == "Converse" else _RESPOND
        return getattr(stub, api)(request, timeout=_SECONDS)

    waited = waits.since_now()
    began = monotonic()
    call = await begin(start, rounds)
    answered = monotonic()
    accepted.set()
    if api != "Respond":
        try:
            while await call.read() is not grpc.aio.EOF:
                pass
        except grpc.aio.AioRpcError:
            pass
    code = await call.code()
    if code in RETRIABLE:
        answered = monotonic()
    ended_by = dict(await call.trailing_metadata() or ()).get("personaplex-problem")
    details = await call.details() or ""
    # What Envoy and gRPC report when the last attempt met a pod that is gone. No pod had accepted the call.
    gone = not await call.initial_metadata() and any(words in details for words in _GONE)
    refused = code in RETRIABLE and (ended_by in ("at-capacity", "draining") or gone)
    outcome = Outcome.COMPLETED if code is grpc.StatusCode.OK else Outcome.REFUSED if refused else Outcome.BROKEN
    detail = "" if outcome is Outcome.COMPLETED else f"{code.name}: {details}"
    ended = monotonic()
    return Result(api, began, answered, outcome, ended, waited() if outcome is Outcome.REFUSED else 0.0, detail)
