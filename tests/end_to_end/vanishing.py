"""Clients that disconnect at any point of the protocol, over every API, each with its own socket."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import grpc
import numpy as np

from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.api.grpc.personaplex.v1 import personaplex_pb2_grpc
from gateway.audio.ogg_opus import OggOpusWriter
from loadtest.apis.rfc6455 import masked
from loadtest.http2 import GrpcCall
from loadtest.record import CallFailed
from tests.end_to_end.conftest import Service, wav

FRAME = 1920
TEXT, BINARY = 1, 2
NOISE = np.random.default_rng(3).uniform(-0.3, 0.3, (40, FRAME)).astype(np.float32)
PCM = [np.round(frame * 32767).astype("<i2").tobytes() for frame in NOISE]

# Where a client disconnects, in the order of the protocol. The first points take no slot.
POINTS = {
    "converse": ("tcp", "half head", "head", "upgraded", "half start", "start", "prompt", "ready", "frames",
                 "mid-frame", "unread", "end", "close"),
    "chat": ("tcp", "half head", "head", "upgraded", "prompt", "ready", "frames", "mid-frame", "unread", "end",
             "close"),
    "grpc": ("tcp", "call", "half start", "start", "prompt", "ready", "frames", "mid-frame", "unread", "end"),
    "rest": ("tcp", "half head", "half body", "asked", "prompt", "ready", "frames"),
    "library": ("call", "start", "ready", "frames", "stream"),
}  # fmt: skip
CHEAP = frozenset({"tcp", "half head", "head", "upgraded", "half start", "half body", "call"})
# How it disconnects: FIN, RST, FIN of the sending side and RST later, or a gRPC cancel.
DISCONNECTS = {"grpc": ("fin", "rst", "half", "cancel"), "library": ("cancel", "channel")}


@dataclass(frozen=True)
class Visit:
    """One client. `frames`: how many it receives; `wait`: seconds between its last step and the disconnect."""

    api: str
    point: str
    disconnect: str
    frames: int
    wait: float

    @property
    def takes_slot(self) -> bool:
        # The query holds all parameters of a chat: prefill begins with the upgrade.
        return self.point not in CHEAP or (self.api == "chat" and self.point in ("head", "upgraded"))


def random_visits(number: int, seed: int) -> list[Visit]:
    """Clients of every API with random points."""
    draw = random.Random(seed)

    def one() -> Visit:
        # A library costs more CPU than a socket and has fewer ways to disconnect.
        api = draw.choices(list(POINTS), (10, 8, 10, 6, 1))[0]
        disconnect = draw.choice(DISCONNECTS.get(api, ("fin", "rst", "half")))
        return Visit(api, draw.choice(POINTS[api]), disconnect, draw.randint(1, 6), draw.choice((0, 0.002, 0.02)))

    return [one() for _ in range(number)]


class Refused(Exception):  # noqa: N818 (no error: the number of slots is limited)
    """No slot was free."""


class Clients:
    """Run clients against `service`, a bounded number at once, and count them."""

    def __init__(self, service: Service, slots: int) -> None:
        """`slots`: the maximum of concurrent clients that take a slot."""
        self._service = service
        address = urlsplit(service.url)
        self._host, self._port = address.hostname or "", address.port or 0
        self._slots = asyncio.Semaphore(slots)
        self._cheap = asyncio.Semaphore(16)
        self.gone = 0
        self.refused = 0
        self._bodies = [_respond_body(stream) for stream in (False, True)]
        self._chat = list(_chat_messages())

    async def all(self, visits: list[Visit]) -> None:
        """Return when all have disconnected."""
        async with asyncio.TaskGroup() as group:
            for visit in visits:
                limit = self._slots if visit.takes_slot else self._cheap
                await limit.acquire()
                task = group.create_task(self._one(visit))
                task.add_done_callback(lambda _, limit=limit: limit.release())

    async def _one(self, visit: Visit) -> None:
        paths: dict[str, Callable[[Visit], object]] = {
            "converse": self._websocket,
            "chat": self._websocket,
            "grpc": self._grpc,
            "rest": self._rest,
        }
        done = False
        while not done:
            try:
                async with asyncio.timeout(30):
                    if visit.api == "library":
                        await asyncio.to_thread(self._library, visit)
                    else:
                        await paths[visit.api](visit)  # type: ignore[misc]
                done = True
            except Refused:
                # Slots of disconnected clients may not be free yet.
                self.refused += 1
                await asyncio.sleep(0.02)
            except TimeoutError:
                raise AssertionError(f"got no answer: {visit}") from None
        self.gone += 1

    async def _websocket(self, visit: Visit) -> None:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            await self._up_to(visit, reader, writer)
            await asyncio.sleep(visit.wait)
        finally:
            await _leave(writer, visit.disconnect)

    async def _up_to(self, visit: Visit, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Send and receive what precedes the point."""
        converse = visit.api == "converse"
        path = "/v1/converse" if converse else "/api/chat?seed=3"
        head = (
            f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        ).encode()
        point = visit.point
        if point == "tcp":
            return
        writer.write(head[: 20 * visit.frames] if point == "half head" else head)
        if point in ("half head", "head"):
            return
        await reader.readuntil(b"\r\n\r\n")
        if point == "upgraded":
            return
        if converse:
            start = masked(TEXT, b'{"type": "start", "seed": 3}')
            writer.write(start[: 4 * visit.frames] if point == "half start" else start)
        if point in ("half start", "start", "prompt"):
            await asyncio.sleep(visit.wait if point == "prompt" else 0)
            return
        audio = [masked(BINARY, pcm) for pcm in PCM] if converse else self._chat
        if point == "unread":
            writer.writelines(audio)
            return
        await _receive(reader, 1)
        if point == "ready":
            return
        writer.writelines(audio[: visit.frames + 2])
        if point == "end":
            writer.write(masked(TEXT, b'{"type": "end"}') if converse else self._chat[-1])
            return
        await _receive(reader, visit.frames)
        if point == "mid-frame":
            writer.write(audio[-2][: 20 * visit.frames])
        elif point == "close":
            writer.write(masked(8, (1001).to_bytes(2, "big")))

    async def _rest(self, visit: Visit) -> None:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            body = self._bodies[visit.point in ("ready", "frames") or visit.frames % 2]
            head = "POST /v1/respond HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAccept: audio/wav\r\n"
            request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
            if visit.point == "half head":
                writer.write(request[: 15 * visit.frames])
            elif visit.point == "half body":
                writer.write(request[: -len(body) // 2])
            elif visit.point != "tcp":
                writer.write(request)
            if visit.point in ("ready", "frames"):
                answer = await reader.readuntil(b"\r\n\r\n")
                if b" 503 " in answer.split(b"\r\n")[0]:
                    raise Refused
                if visit.point == "frames":
                    await reader.readexactly(visit.frames * 2 * FRAME)
            await asyncio.sleep(visit.wait)
        finally:
            await _leave(writer, visit.disconnect)

    async def _grpc(self, visit: Visit) -> None:
        received = asyncio.Semaphore(0)

        def came(message: bytes) -> None:
            if pb.ConverseResponse.FromString(message).WhichOneof("message") in ("ready", "audio"):
                received.release()

        call = await GrpcCall.open(
            f"http://{self._service.grpc_target}", "/personaplex.v1.PersonaPlex/Converse", [], came
        )
        call.ended.add_done_callback(lambda _: received.release())

        async def receive(frames: int) -> None:
            for _ in range(frames):
                await received.acquire()
                if call.ended.done():
                    raise Refused

        try:
            with _refusals():
                await self._converse(visit, call, receive)
            await asyncio.sleep(visit.wait)
        finally:
            if visit.disconnect == "cancel" and not call.ended.done():
                # RST_STREAM, CANCEL; the connection ends later.
                call._send(3, 0, 1, (8).to_bytes(4, "big"))
                await asyncio.sleep(0.005)
            await _leave(call._transport, visit.disconnect)

    async def _converse(self, visit: Visit, call: GrpcCall, receive: Callable[[int], object]) -> None:
        point = visit.point
        if point in ("tcp", "call"):
            return
        start = pb.ConverseRequest(start=pb.Start(sampling=pb.Sampling(seed=3))).SerializeToString()
        if point == "half start":
            call._send(0, 0, 1, b"\0" + len(start).to_bytes(4, "big") + start[:2])
            return
        await call.send(start)
        if point in ("start", "prompt"):
            await asyncio.sleep(visit.wait if point == "prompt" else 0)
            return
        audio = [pb.ConverseRequest(audio=pcm).SerializeToString() for pcm in PCM]
        if point == "unread":
            call._transport.pause_reading()
            for message in audio[:15]:
                await call.send(message)
            return
        await receive(1)  # type: ignore[misc]
        if point == "ready":
            return
        for message in audio[: visit.frames + 2]:
            await call.send(message)
        if point == "end":
            call.half_close()
            return
        await receive(visit.frames)  # type: ignore[misc]
        if point == "mid-frame":
            # A DATA frame of 4000 bytes, of which the first hundred come.
            message = b"\0" + (3995).to_bytes(4, "big") + bytes(95)
            call._transport.write((4000).to_bytes(3, "big") + bytes((0, 0)) + (1).to_bytes(4, "big") + message)

    def _library(self, visit: Visit) -> None:
        """A client with grpcio: it cancels its call or closes the channel."""
        channel = grpc.insecure_channel(self._service.grpc_target, [("grpc.use_local_subchannel_pool", 1)])
        stub = personaplex_pb2_grpc.PersonaPlexStub(channel)
        over = threading.Event()

        def messages() -> Iterator[pb.ConverseRequest]:
            if visit.point != "call":
                yield pb.ConverseRequest(start=pb.Start(sampling=pb.Sampling(seed=3)))
            if visit.point == "frames":
                for pcm in PCM[:10]:
                    yield pb.ConverseRequest(audio=pcm)
            over.wait()

        try:
            if visit.point == "stream":
                call = stub.RespondStream(pb.RespondRequest(audio=wav(NOISE[:2].reshape(-1)), max_steps=50))
            else:
                call = stub.Converse(messages())
            try:
                for _ in range({"call": 0, "start": 0, "ready": 1}.get(visit.point, visit.frames + 1)):
                    next(call)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                raise Refused from None
            if visit.disconnect == "cancel":
                call.cancel()
        finally:
            over.set()
            channel.close()


async def _receive(reader: asyncio.StreamReader, messages: int) -> None:
    """Receive binary messages of a WebSocket. Raises Refused if it is closed."""
    while messages:
        first, length = await reader.readexactly(2)
        if length == 126:
            length = int.from_bytes(await reader.readexactly(2), "big")
        payload = await reader.readexactly(length)
        if first == 0x88:
            assert payload[:2] == (1013).to_bytes(2, "big"), payload
            raise Refused
        messages -= first == 0x82 and payload[:1] != b"\x05"


async def _leave(writer: asyncio.StreamWriter | asyncio.Transport, disconnect: str) -> None:
    transport = writer.transport if isinstance(writer, asyncio.StreamWriter) else writer
    connected: socket.socket = transport.get_extra_info("socket")
    if transport.is_closing():
        return
    if disconnect == "rst":
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif disconnect == "half":
        # What comes now could not be acknowledged any more.
        transport.pause_reading()
        transport.write_eof()
        await asyncio.sleep(0.03)
    transport.abort()


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except CallFailed:
        raise Refused from None


def _respond_body(stream: bool) -> bytes:
    audio = base64.b64encode(wav(NOISE[:2].reshape(-1))).decode()
    return json.dumps({"audio": audio, "max_steps": 20, "stream": stream, "seed": 3}).encode()


def _chat_messages() -> Iterator[bytes]:
    writer = OggOpusWriter()
    yield masked(BINARY, b"\x01" + writer.head())
    for frame in NOISE[:-1]:
        yield masked(BINARY, b"\x01" + writer.write(frame))
    yield masked(BINARY, b"\x01" + writer.write(NOISE[-1], last=True))
