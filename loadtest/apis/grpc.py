"""A live conversation over gRPC: personaplex.v1.PersonaPlex/Converse."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ClassVar

from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from loadtest.apis import OnFrame
from loadtest.http2 import GrpcCall, Status
from loadtest.plan import Plan
from loadtest.record import CallFailed, Malformed, Refused
from loadtest.speech import FRAME_SIZE, RATE, Speech

PATH = "/personaplex.v1.PersonaPlex/Converse"
_OK, _RESOURCE_EXHAUSTED = 0, 8


class GrpcClient:
    """See LiveClient."""

    frame_bytes: ClassVar = 2 * FRAME_SIZE

    def __init__(self, plan: Plan, speech: Speech, seed: int, on_frame: OnFrame) -> None:
        self._plan = plan
        self._seed = seed
        self._on_frame = on_frame
        # Encoded once, so that the client uses little CPU while the server is measured.
        self._frames = [pb.ConverseRequest(audio=frame).SerializeToString() for frame in speech.frames]
        self._ready = asyncio.Event()
        self._admitted = False
        self._ended: pb.Ended | None = None
        self._call: GrpcCall
        self._disconnect: Callable[[], None] = lambda: None

    async def open(self) -> None:
        metadata = [("authorization", f"Bearer {self._plan.api_key}")] if self._plan.api_key else []
        self._call = call = await GrpcCall.open(self._plan.grpc_url, PATH, metadata, self._on_message)
        self._disconnect = call.close
        start = pb.Start(sampling=pb.Sampling(seed=self._seed), format=pb.AUDIO_FORMAT_PCM_S16LE)
        await call.send(pb.ConverseRequest(start=start).SerializeToString())
        call.ended.add_done_callback(lambda _: self._ready.set())
        await self._ready.wait()
        if call.ended.done():
            raise self._error(call.ended.result())

    async def send(self, u: int) -> None:
        if self._call.ended.done():
            raise self._error(self._call.ended.result())
        await self._call.send(self._frames[u % len(self._frames)])

    async def finish(self) -> tuple[int, int]:
        if not self._call.ended.done():
            await self._call.send(pb.ConverseRequest(end=pb.End()).SerializeToString())
            self._call.half_close()
        status = await self._call.ended
        if status.code != _OK:
            raise self._error(status)
        if self._ended is None or self._ended.reason != pb.END_REASON_COMPLETED:
            raise Malformed("status OK without an `ended` message of reason completed")
        return self._ended.dropped_frames, self._ended.late_frames

    def close(self) -> None:
        self._disconnect()

    def _on_message(self, message: bytes) -> None:
        try:
            response = pb.ConverseResponse.FromString(message)
        except Exception as error:
            raise Malformed(f"not a ConverseResponse: {error}") from None
        kind = response.WhichOneof("message")
        if kind == "audio" and self._ready.is_set():
            self._on_frame(response.audio.index, len(response.audio.data))
        elif kind == "ready" and not self._ready.is_set():
            ready = response.ready
            if (ready.sample_rate, ready.frame_size) != (RATE, FRAME_SIZE):
                raise Malformed(f"frames of {ready.frame_size} samples at {ready.sample_rate} Hz")
            self._admitted = True
            self._ready.set()
        elif kind == "ended":
            self._ended = response.ended
        elif kind not in ("stats", "warning"):
            raise Malformed(f"an unexpected message: {kind}")

    def _error(self, status: Status) -> CallFailed | Refused:
        # The same status ends a conversation whose client stopped reading.
        if status.code == _RESOURCE_EXHAUSTED and not self._admitted:
            return Refused(status.message)
        return CallFailed(f"gRPC status {status.code}: {status.message}")
