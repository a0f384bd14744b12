"""The engine that is Triton: one sequence id per conversation, one request per stage for all who share a frame."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from uuid import uuid4
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from gateway.engine.backend import Draw, Floats, Pause, Prefilled, TemporalOutput, Tokens, at_once
from gateway.engine.grid import STREAMS
from gateway.engine.pace import Pace, piece
from gateway.engine.triton.gather import DEPFORMER, DepformerCalls, Frame, FrameCalls
from gateway.engine.triton.http import Tensors, TritonGone, TritonHttp, TritonRefused
from gateway.engine.triton.prefix import Prefix
from gateway.engine.triton.request import Tensor
from gateway.engine.triton.sequence import TritonSequence
from gateway.errors import EngineError, EngineUnavailable
from gateway.manifest import Manifest

logger = logging.getLogger(__name__)

_READY_TIMEOUT = 2.0
STATEFUL = ENCODER, TEMPORAL, DECODER = "mimi_encoder", "temporal", "mimi_decoder"
_SAMPLER = (Tensor("sampler", "INT64", (3,)), Tensor("temperature", "FP32", (1,)))


class TritonEngine:
    """Opens sessions on the Triton at `url` (HOST:PORT of its HTTP endpoint). Deadlines are in seconds per call."""

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
        self.http = TritonHttp(url)
        self.frames = {model: FrameCalls(self.http, manifest.slots, step_deadline) for model in STATEFUL}
        self.depformer = DepformerCalls(self.http, manifest.dim, manifest.slots, step_deadline)
        self.pace = Pace(1 / manifest.frame_rate)
        self.feeding = asyncio.Lock()
        """Held while a piece of a prefix is under way: there is one between two frames, whoever waits."""
        self.fills: WeakValueDictionary[bytes, Fill] = WeakValueDictionary()
        """Of the prefixes that sessions are beginning with, by digest."""
        self.talking: set[TritonSession] = set()
        """Sessions that have begun."""

    def open(self) -> TritonSession:
        """A session under a fresh sequence id."""
        return TritonSession(self)

    async def ready(self) -> bool:
        """Whether the server and each of its models say so."""
        paths = ["/v2/health/ready", *(f"/v2/models/{name}/ready" for name in self.manifest.models)]
        try:
            await asyncio.gather(*(self.http.get(path, _READY_TIMEOUT) for path in paths))
        except (TritonGone, TritonRefused):
            return False
        return True

    async def close(self) -> None:
        """Close the connections."""
        await self.http.close()


class Fill:
    """The feeding of one prefix: by one session at a time, and `times` it has been tried."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.times = 0


class TritonSession:
    """One conversation's rows in the three stateful models."""

    def __init__(self, engine: TritonEngine) -> None:
        manifest = engine.manifest
        self._engine = engine
        self._pending: asyncio.Future[Tensors] | None = None
        self._closing: asyncio.Future[None] | None = None
        self.sequence_id = str(uuid4())
        self._encoder = self._sequence(ENCODER, Tensor("pcm", "FP32", (manifest.frame_size,)))
        self._temporal = self._sequence(TEMPORAL, Tensor("columns", "INT64", (1, STREAMS)), *_SAMPLER)
        self._decoder = self._sequence(DECODER, Tensor("codes", "INT64", (manifest.codebooks,)))

    def _sequence(self, model: str, *inputs: Tensor) -> TritonSequence:
        return TritonSequence(model, inputs, self.sequence_id)

    async def encode(self, pcm: Floats) -> Tokens:
        """pcm [1920] -> codes [8]."""
        answer = await self._step(self._encoder, [_bytes(pcm, np.float32)])
        return np.frombuffer(answer["codes"], np.int64)

    async def prefill(self, columns: Tokens, embeddings: Floats, draw: Draw, pause: Pause = at_once) -> Prefilled:
        """embeddings [E, dim], then columns [S, 17]: all but the last column come from the model's memory if it can.

        If it has never seen them they are fed in pieces. Of several sessions that begin so at once one does, for all.
        """
        engine, prefix, last = self._engine, Prefix(embeddings, columns[:-1]), columns[-1]
        if not self._encoder.begun:
            # So that the caller's first frame finds a row, and can be shared.
            await self._own(self._encoder, self._encoder.begin(), engine.step_deadline)
        fill = engine.fills.setdefault(prefix.digest, Fill())
        while True:
            times = fill.times
            if (thought := await self._recall(prefix, last, draw)) is not None:
                engine.talking.add(self)
                return Prefilled(thought, cached=prefix.length)
            async with fill.lock:
                # What the model answered may be from before another session's last piece.
                if fill.times == times:
                    try:
                        await self._feed(prefix, draw, pause)
                    finally:
                        fill.times += 1
                    break
        engine.talking.add(self)
        return Prefilled(await self.step(last, draw), cached=0)

    async def _recall(self, prefix: Prefix, last: Tokens, draw: Draw) -> TemporalOutput | None:
        """What the column behind the prefix leads to; None if the model does not have the prefix."""
        column = (Tensor("columns", "INT64", (1, STREAMS)), _bytes(last, np.int64))
        answer = await self._prefix_call([column, prefix.mark(prefix.length)], draw)
        return _thought(answer) if "hidden" in answer else None

    async def _feed(self, prefix: Prefix, draw: Draw, pause: Pause) -> None:
        engine, window = self._engine, self._engine.manifest.context - 1
        done = 0
        while done < prefix.length:
            async with engine.feeding:
                await asyncio.sleep(engine.pace.rest(bool(engine.talking)))
                await pause()
                count = piece(done, prefix.length, engine.pace.columns(bool(engine.talking)), window)
                answer = await self._prefix_call(prefix.piece(done, done + count), draw)
                _, microseconds = np.frombuffer(answer["progress"], np.int64)
                engine.pace.took(count, microseconds / 1e6)
            done += count

    async def _prefix_call(self, tensors: Sequence[tuple[Tensor, bytes]], draw: Draw) -> Tensors:
        inputs = [*(tensor for tensor, _ in tensors), *_SAMPLER]
        request = self._temporal.request(inputs, [*(content for _, content in tensors), *_draw(draw)])
        return await self._own(self._temporal, request, self._engine.prefill_deadline)

    async def step(self, column: Tokens, draw: Draw) -> TemporalOutput:
        """One more column [17]."""
        return _thought(await self._step(self._temporal, [_bytes(column, np.int64), *_draw(draw)]))

    async def depformer(self, thought: TemporalOutput, draw: Draw) -> Tokens:
        """The agent's codes [8] of the column after the last one fed."""
        try:
            return await self._engine.depformer.ask((thought, draw))
        except (TritonGone, TritonRefused) as error:
            raise _translated(error, DEPFORMER) from error

    async def decode(self, codes: Tokens) -> Floats:
        """codes [8] -> pcm [1920]."""
        answer = await self._step(self._decoder, [_bytes(codes, np.int64)])
        return np.frombuffer(answer["pcm"], np.float32)

    async def close(self) -> None:
        """END every sequence that was begun, after the call in flight, if there is one, has come back."""
        self._engine.talking.discard(self)
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._end_all())
        await asyncio.shield(self._closing)

    async def _end_all(self) -> None:
        if self._pending is not None and not self._pending.done():
            await asyncio.wait([self._pending])
        begun = [sequence for sequence in (self._encoder, self._temporal, self._decoder) if sequence.begun]
        await asyncio.gather(*(self._end(sequence) for sequence in begun))

    async def _end(self, sequence: TritonSequence) -> None:
        try:
            await self._engine.http.infer(sequence.end(), self._engine.release_deadline)
        except (TritonGone, TritonRefused) as error:
            # Triton reuses the row by itself once the sequence has been idle for long enough.
            logger.warning("could not end %s of conversation %s: %s", sequence.model, self.sequence_id, _line(error))

    async def _step(self, sequence: TritonSequence, contents: Sequence[bytes]) -> Tensors:
        if sequence.shares:
            return await self._answer(sequence, self._engine.frames[sequence.model].ask(Frame(sequence, contents)))
        return await self._own(sequence, sequence.frame(contents), self._engine.step_deadline)

    async def _own(self, sequence: TritonSequence, request: Sequence[bytes], deadline: float) -> Tensors:
        answer = await self._answer(sequence, self._engine.http.infer(request, deadline))
        sequence.answered(answer)
        return answer

    async def _answer(self, sequence: TritonSequence, call: asyncio.Future[Tensors]) -> Tensors:
        """Raw outputs by name.

        A caller who is cancelled does not cancel the call: cutting a step in two would leave Triton to clean up the
        sequence in its own time, instead of our END doing it now.
        """
        self._pending = call
        try:
            return await asyncio.shield(call)
        except (TritonGone, TritonRefused) as error:
            raise _translated(error, sequence.model) from error


def _translated(error: TritonGone | TritonRefused, model: str) -> EngineUnavailable | EngineError:
    """What a caller may know; Triton's own words, which name addresses and internals, go to the log."""
    line = _line(error)
    logger.warning("a call to %s failed: %s", model, line)
    if isinstance(error, TritonGone):
        return EngineUnavailable(f"Triton is not available ({model})")
    if "must specify the START flag" in line:
        return EngineUnavailable(f"Triton no longer knows this conversation ({model}): it was restarted or too slow")
    if error.status in _UNAVAILABLE:
        return EngineUnavailable(f"Triton is not available ({model}, HTTP {error.status})")
    return EngineError(f"Triton failed ({model}, HTTP {error.status})")


_UNAVAILABLE = (502, 503, 504)


def _line(error: TritonGone | TritonRefused) -> str:
    first = str(error).splitlines()[0] if str(error) else "no details"
    return f"HTTP {error.status}: {first}" if isinstance(error, TritonRefused) else first


def _bytes(array: npt.NDArray[np.float32] | npt.NDArray[np.int64], dtype: type[np.float32 | np.int64]) -> bytes:
    return np.ascontiguousarray(array, dtype).tobytes()


def _draw(draw: Draw) -> tuple[bytes, bytes]:
    sampler = np.array([draw.seed, draw.position, draw.top_k], np.int64)
    return sampler.tobytes(), np.array([draw.temperature], np.float32).tobytes()


def _thought(answer: Mapping[str, memoryview]) -> TemporalOutput:
    text_token = int(np.frombuffer(answer["text_token"], np.int64)[0])
    return TemporalOutput(np.frombuffer(answer["hidden"], np.float32), text_token)
