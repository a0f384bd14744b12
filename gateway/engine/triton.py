"""The engine that is Triton: one sequence id per conversation, one gRPC call per stage and frame.

Requests are built once per conversation and model, and only their bytes are replaced: this path runs four times
per frame and conversation, and tritonclient's own tensors would cost more than the call.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from uuid import uuid4

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2, service_pb2_grpc

from gateway.conversation.engine import Draw, Floats, Thought, Tokens
from gateway.conversation.grid import STREAMS
from gateway.engine.request import Request, Tensor
from gateway.errors import EngineError, EngineUnavailable
from gateway.manifest import Manifest

logger = logging.getLogger(__name__)

_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A Triton that comes back is found again within about a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
]
_READY_TIMEOUT = 2.0


class TritonEngine:
    """Opens sessions on the Triton at `url` (HOST:PORT of its gRPC endpoint). Deadlines are in seconds per call."""

    def __init__(
        self,
        url: str,
        manifest: Manifest,
        *,
        step_deadline: float = 10.0,
        prefill_deadline: float = 120.0,
        release_deadline: float = 60.0,
    ) -> None:
        self.url = url
        self.manifest = manifest
        self.step_deadline = step_deadline
        self.prefill_deadline = prefill_deadline
        self.release_deadline = release_deadline
        self._channel: grpc.aio.Channel | None = None

    @property
    def stub(self) -> service_pb2_grpc.GRPCInferenceServiceStub:
        """Connected at first use, because a channel belongs to the event loop it is made in."""
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self.url, options=_CHANNEL_OPTIONS)
            self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        return self._stub

    def open(self) -> TritonSession:
        """A session under a fresh sequence id."""
        return TritonSession(self)

    async def ready(self) -> bool:
        """Whether the server and each of its models say so."""
        try:
            answers = await asyncio.gather(
                self.stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=_READY_TIMEOUT),
                *(
                    self.stub.ModelReady(service_pb2.ModelReadyRequest(name=name), timeout=_READY_TIMEOUT)
                    for name in self.manifest.models
                ),
            )
        except grpc.RpcError:
            return False
        return all(answer.ready for answer in answers)

    async def close(self) -> None:
        """Close the connection."""
        if self._channel is not None:
            await self._channel.close()
            self._channel = None


class TritonSession:
    """One conversation's rows in the three stateful models."""

    def __init__(self, engine: TritonEngine) -> None:
        manifest = engine.manifest
        self._engine = engine
        self._dim = manifest.dim
        self._pending: asyncio.Future[dict[str, bytes]] | None = None
        self._closing: asyncio.Future[None] | None = None
        self.sequence_id = str(uuid4())
        sampler = (Tensor("sampler", "INT64", (3,)), Tensor("temperature", "FP32", (1,)))
        self._encoder = self._stateful("mimi_encoder", Tensor("pcm", "FP32", (manifest.frame_size,)))
        self._temporal = self._stateful(
            "temporal", Tensor("columns", "INT64", (1, STREAMS)), Tensor("embeddings", "FP32", (0, self._dim)), *sampler
        )
        self._depformer = Request(
            "depformer", [Tensor("hidden", "FP32", (self._dim,)), Tensor("text_token", "INT64", (1,)), *sampler]
        )
        self._decoder = self._stateful("mimi_decoder", Tensor("codes", "INT64", (manifest.codebooks,)))

    def _stateful(self, model: str, *inputs: Tensor) -> Request:
        return Request(model, inputs, self.sequence_id)

    async def encode(self, pcm: Floats) -> Tokens:
        """pcm [1920] -> codes [8]."""
        answer = await self._call(self._encoder, [_bytes(pcm, np.float32)])
        return np.frombuffer(answer["codes"], np.int64)

    async def prefill(self, columns: Tokens, embeddings: Floats, draw: Draw) -> Thought:
        """embeddings [E, dim], then columns [S, 17], in one call."""
        self._temporal.reshape(0, columns.shape)
        self._temporal.reshape(1, embeddings.shape)
        contents = [_bytes(columns, np.int64), _bytes(embeddings, np.float32), *_draw(draw)]
        answer = await self._call(self._temporal, contents, self._engine.prefill_deadline)
        self._temporal.reshape(0, (1, STREAMS))
        self._temporal.reshape(1, (0, self._dim))
        return _thought(answer)

    async def step(self, column: Tokens, draw: Draw) -> Thought:
        """One more column [17]."""
        return _thought(await self._call(self._temporal, [_bytes(column, np.int64), b"", *_draw(draw)]))

    async def depformer(self, thought: Thought, draw: Draw) -> Tokens:
        """The agent's codes [8] of the column after the last one fed."""
        text_token = np.array([thought.text_token], np.int64)
        contents = [_bytes(thought.hidden, np.float32), text_token.tobytes(), *_draw(draw)]
        return np.frombuffer((await self._call(self._depformer, contents))["codes"], np.int64)

    async def decode(self, codes: Tokens) -> Floats:
        """codes [8] -> pcm [1920]."""
        answer = await self._call(self._decoder, [_bytes(codes, np.int64)])
        return np.frombuffer(answer["pcm"], np.float32)

    async def close(self) -> None:
        """END every sequence that was begun, after the call in flight, if there is one, has come back."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._end_all())
        await asyncio.shield(self._closing)

    async def _end_all(self) -> None:
        if self._pending is not None and not self._pending.done():
            await asyncio.wait([self._pending])
        begun = [request for request in (self._encoder, self._temporal, self._decoder) if request.begun]
        await asyncio.gather(*(self._end(request) for request in begun))

    async def _end(self, request: Request) -> None:
        try:
            await self._engine.stub.ModelInfer(request.end(), timeout=self._engine.release_deadline)
        except grpc.RpcError as error:
            # Triton reuses the row by itself once the sequence has been idle for long enough.
            logger.warning("could not end %s of conversation %s: %s", request.model, self.sequence_id, _line(error))

    async def _call(
        self, request: Request, contents: Sequence[bytes], deadline: float | None = None
    ) -> dict[str, bytes]:
        """Raw outputs by name.

        A caller who is cancelled does not cancel the call: cutting a step in two would leave Triton to clean up the
        sequence in its own time, instead of our END doing it now.
        """
        self._pending = asyncio.ensure_future(self._infer(request, contents, deadline or self._engine.step_deadline))
        return await asyncio.shield(self._pending)

    async def _infer(self, request: Request, contents: Sequence[bytes], deadline: float) -> dict[str, bytes]:
        try:
            answer = await self._engine.stub.ModelInfer(request.fill(contents), timeout=deadline)
        except grpc.RpcError as error:
            raise _translated(error, request.model) from error
        return {output.name: raw for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)}


_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


def _translated(error: grpc.RpcError, model: str) -> EngineUnavailable | EngineError:
    """What a caller may know; Triton's own words, which name addresses and internals, go to the log."""
    line = _line(error)
    logger.warning("a call to %s failed: %s", model, line)
    where = f"({model}, {error.code().name})"
    if error.code() in _GONE:
        return EngineUnavailable(f"Triton is not available {where}")
    if "must specify the START flag" in line:
        return EngineUnavailable(f"Triton no longer knows this conversation {where}: it was restarted or too slow")
    return EngineError(f"Triton failed {where}")


def _line(error: grpc.RpcError) -> str:
    return f"{error.code().name}: {(error.details() or '').splitlines()[0] if error.details() else 'no details'}"


def _bytes(array: npt.NDArray[np.float32] | npt.NDArray[np.int64], dtype: type[np.float32 | np.int64]) -> bytes:
    return np.ascontiguousarray(array, dtype).tobytes()


def _draw(draw: Draw) -> tuple[bytes, bytes]:
    sampler = np.array([draw.seed, draw.position, draw.top_k], np.int64)
    return sampler.tobytes(), np.array([draw.temperature], np.float32).tobytes()


def _thought(answer: dict[str, bytes]) -> Thought:
    text_token = int(np.frombuffer(answer["text_token"], np.int64)[0])
    return Thought(np.frombuffer(answer["hidden"], np.float32), text_token)
