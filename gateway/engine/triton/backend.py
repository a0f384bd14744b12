"""The backend that is Triton: each batch is one HTTP request to each model, each slot one sequence in each model.

A slot's sequence ids never change, so a gateway that was killed takes its slots over when it comes back: START on a
running sequence restarts it in its row. A request is carried by any sequence that runs, and `members` names the row
and the key of each conversation it is about. The key is new for each conversation, so that a late request of the slot's
previous conversation is rejected.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from time import monotonic
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from gateway.engine.backend import BatchRejected, Floats, Prefilled, TemporalOutput, Tokens, Wait
from gateway.engine.grid import STREAMS
from gateway.engine.prefill import ChunkPacer, chunk_length
from gateway.engine.prefix import PromptPrefix
from gateway.engine.triton.http import Outputs, TritonHttp, TritonRejected, TritonUnreachable, get
from gateway.engine.triton.requests import TensorSpec, request_head
from gateway.errors import EngineError, EngineUnavailable
from gateway.manifest import Manifest

logger = logging.getLogger(__name__)

STATEFUL = ENCODER, TEMPORAL, DECODER = "mimi_encoder", "temporal", "mimi_decoder"
DEPFORMER = "depformer"

RENEW_SECONDS = 600.0
"""A slot whose sequence carried no request for so long carries the next batch that it is in. Triton frees the row of a
sequence that carries none for an hour (`SEQUENCE_IDLE_MICROSECONDS` in the models' configuration)."""

END_PAUSE = 0.02
"""Seconds between two sequences' ends in a model while conversations talk. Each costs as much as several frames."""

_READY_TIMEOUT = 2.0
_NOTHING_DONE = 400
"""HTTP status of a request that the model, or Triton in front of it, rejected before it changed any state."""
_UNAVAILABLE = (502, 503, 504)
_NO_ROW = -1
"""Row in a START request that has nothing to run yet."""
_NOT_RUNNING = np.iinfo(np.int64).max
"""In place of the row, above all others, and of the key."""

_MEMBERS = TensorSpec("members", "INT64", (2,))
_SAMPLER = (TensorSpec("sampler", "INT64", (3,)), TensorSpec("temperature", "FP32", (1,)))

Array = npt.NDArray[np.float32] | npt.NDArray[np.int64]


class TritonBackend:
    """Runs batches on the Triton at `url` (HOST:PORT of its HTTP endpoint). Deadlines are seconds per call."""

    def __init__(
        self,
        url: str,
        manifest: Manifest,
        *,
        step_deadline: float = 10.0,
        prefill_deadline: float = 120.0,
        release_deadline: float = 60.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.url = url
        self.pacer = ChunkPacer(1 / manifest.frame_rate)
        self._manifest = manifest
        self._http = TritonHttp(url)
        self._step_deadline = step_deadline
        self._prefill_deadline = prefill_deadline
        self._release_deadline = release_deadline
        self._clock = clock
        self._inputs: dict[str, tuple[TensorSpec, ...]] = {
            ENCODER: (TensorSpec("pcm", "FP32", (manifest.frame_size,)),),
            TEMPORAL: (TensorSpec("columns", "INT64", (1, STREAMS)), *_SAMPLER),
            DECODER: (TensorSpec("codes", "INT64", (manifest.codebooks,)),),
            DEPFORMER: (
                TensorSpec("hidden", "FP32", (manifest.dim,)),
                TensorSpec("text_token", "INT64", (1,)),
                *_SAMPLER,
            ),
        }
        # Per model: row and key of each slot's sequence, and when it last carried a request.
        self._members = {model: np.full((manifest.slots, 2), _NOT_RUNNING) for model in STATEFUL}
        self._renewed_at = {model: np.zeros(manifest.slots) for model in STATEFUL}
        self._open: set[int] = set()
        self._calls: defaultdict[tuple[str, int], set[asyncio.Task[Outputs]]] = defaultdict(set)
        """Calls that a slot's sequence carries, by model and slot. The sequence ends after them."""
        self._talking: set[int] = set()
        """Slots whose prompt is in the model."""
        self._ending = {model: asyncio.Lock() for model in STATEFUL}
        """Held while a sequence ends. So a batch waits for one END at most."""
        self._feeding = asyncio.Lock()
        """Held while a chunk of a prompt runs: there is one between two batches, however many conversations start."""
        self._fills: WeakValueDictionary[bytes, _Fill] = WeakValueDictionary()
        """Prompts that conversations start with now, by digest."""
        self._batch_head = cache(self._make_batch_head)

    async def open(self, slot: int) -> None:
        """See `Backend.open`. The frames that follow can be part of batches."""
        self._open.add(slot)
        self._talking.discard(slot)
        await asyncio.gather(*(self._start_sequence(model, slot) for model in STATEFUL))

    async def encode(self, slots: Tokens, pcm: Floats) -> Tokens:
        """See `Backend.encode`."""
        codes: Tokens = (await self._run(ENCODER, slots, pcm))["codes"][0]
        return codes

    async def step(self, slots: Tokens, steps: Tokens, sampler: Tokens, temperature: Floats) -> TemporalOutput:
        """See `Backend.step`."""
        outputs = await self._run(TEMPORAL, slots, steps, sampler, temperature)
        return TemporalOutput(outputs["hidden"][0], outputs["text_token"][0, :, 0])

    async def depformer(self, output: TemporalOutput, sampler: Tokens, temperature: Floats) -> Tokens:
        """See `Backend.depformer`. The model has no state, so its batch is Triton's own batch dimension."""
        tensors = [tensor.tobytes() for tensor in (output.hidden, output.text_tokens, sampler, temperature)]
        head = self._batch_head(DEPFORMER, len(output.hidden), None)
        try:
            outputs = await self._http.request([head, *tensors], self._step_deadline)
        except (TritonUnreachable, TritonRejected) as error:
            raise _engine_error(error, DEPFORMER) from error
        codes: Tokens = outputs["codes"]
        return codes

    async def decode(self, slots: Tokens, codes: Tokens) -> Floats:
        """See `Backend.decode`."""
        pcm: Floats = (await self._run(DECODER, slots, codes))["pcm"][0]
        return pcm

    async def prefill(
        self, slot: int, prefix: PromptPrefix, sampler: Tokens, temperature: Floats, wait: Wait
    ) -> Prefilled:
        """See `Backend.prefill`. The model keeps prompts: only one that it does not have is fed.

        When several conversations start with the same new prompt at once, one of them feeds it.
        """
        fill = self._fills.setdefault(prefix.digest, _Fill())
        draw = (sampler, temperature)
        while True:
            attempts = fill.attempts
            if (output := await self._step_after_cached(slot, prefix, draw)) is not None:
                self._talking.add(slot)
                return Prefilled(output, cached=prefix.cacheable)
            async with fill.lock:
                # The model may have answered before the last chunk of another conversation.
                if fill.attempts == attempts:
                    try:
                        await self._feed(slot, prefix, draw, wait)
                    finally:
                        fill.attempts += 1
                    break
        self._talking.add(slot)
        try:
            output = await self.step(np.array([slot]), prefix.steps[-1:], sampler, temperature)
        except BatchRejected as rejection:
            raise rejection.error from rejection
        return Prefilled(output, cached=0)

    async def release(self, slot: int) -> None:
        """See `Backend.release`. A call whose conversation was cancelled is finished first."""
        self._talking.discard(slot)
        if slot in self._open:
            self._open.discard(slot)
            await asyncio.gather(*(self._end_sequence(model, slot) for model in STATEFUL))

    async def ready(self) -> bool:
        """Whether the server and each of its models report that they are ready."""
        paths = ["/v2/health/ready", *(f"/v2/models/{name}/ready" for name in self._manifest.models)]
        try:
            await asyncio.gather(*(self._http.request(get(path), _READY_TIMEOUT) for path in paths))
        except (TritonUnreachable, TritonRejected):
            return False
        return True

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

    async def _run(self, model: str, slots: Tokens, *tensors: Array) -> Outputs:
        """Run a stateful model for a batch; `tensors`: its inputs, batch first. Outputs have shape [1, B, ...].

        The running sequence of the lowest row carries the request, whether its slot is in the batch or not. For each
        row below, Triton adds a copy of the request with tensors of the same size.
        """
        renewed_at, now = self._renewed_at[model], self._clock()
        ages = now - renewed_at[slots]
        carrier = int(self._members[model][:, 0].argmin() if ages.max() < RENEW_SECONDS else slots[ages.argmax()])
        renewed_at[carrier] = now
        head = self._batch_head(model, len(slots), carrier)
        try:
            contents = [tensor.tobytes() for tensor in (*tensors, self._members[model][slots])]
            call = asyncio.ensure_future(self._http.request([head, *contents], self._step_deadline))
            calls = self._calls[model, carrier]
            calls.add(call)
            call.add_done_callback(calls.discard)
            return await call
        except TritonRejected as error:
            failure = _engine_error(error, model)
            raise BatchRejected(failure) if error.status == _NOTHING_DONE else failure from error
        except TritonUnreachable as error:
            raise _engine_error(error, model) from error

    def _make_batch_head(self, model: str, batch: int, carrier: int | None) -> bytes:
        """Head of a frame's request: the same for each batch of one size that one slot's sequence carries."""
        if carrier is None:
            return request_head(model, [tensor.batched(batch) for tensor in self._inputs[model]])
        inputs = [tensor.batched(1, batch) for tensor in (*self._inputs[model], _MEMBERS)]
        return request_head(model, inputs, _sequence_id(carrier))

    async def _start_sequence(self, model: str, slot: int) -> None:
        key = secrets.randbits(63)
        inputs = [tensor.batched(1, 1) for tensor in self._inputs[model]]
        payload = [bytes(tensor.nbytes) for tensor in inputs]
        outputs = await self._call(model, slot, inputs, payload, _NO_ROW, key, start=True)
        self._members[model][slot] = int(outputs["row"][0, 0]), key

    async def _end_sequence(self, model: str, slot: int) -> None:
        self._members[model][slot] = _NOT_RUNNING
        # On another connection END could overtake them.
        await asyncio.gather(*self._calls.pop((model, slot), ()), return_exceptions=True)
        inputs = [tensor.batched(1, 1) for tensor in (*self._inputs[model], _MEMBERS)]
        head = request_head(model, inputs, _sequence_id(slot), end=True)
        payload = [bytes(tensor.nbytes) for tensor in inputs]
        try:
            async with self._ending[model]:
                await self._http.request([head, *payload], self._release_deadline)
                if self._talking:
                    await asyncio.sleep(END_PAUSE)
        except (TritonUnreachable, TritonRejected) as error:
            # The slot's next conversation restarts the sequence anyway.
            logger.warning("could not end the sequence of slot %d in %s: %s", slot, model, _line(error))

    async def _step_after_cached(
        self, slot: int, prefix: PromptPrefix, draw: tuple[Tokens, Floats]
    ) -> TemporalOutput | None:
        """The output of the prompt's last step if the model has the steps before it; otherwise None."""
        last = prefix.steps[-1:]
        outputs = await self._prefix_call(slot, [("columns", last)], prefix, prefix.cacheable, draw)
        if "hidden" not in outputs:
            return None
        return TemporalOutput(outputs["hidden"][0], outputs["text_token"][0, :, 0])

    async def _feed(self, slot: int, prefix: PromptPrefix, draw: tuple[Tokens, Floats], wait: Wait) -> None:
        window, embedded = self._manifest.context - 1, len(prefix.embeddings)
        done, total = 0, prefix.cacheable
        while done < total:
            async with self._feeding:
                await asyncio.sleep(self.pacer.pause(bool(self._talking)))
                await wait()
                count = chunk_length(done, total, self.pacer.steps(bool(self._talking)), window)
                tensors: list[tuple[str, Array]] = [
                    ("columns", prefix.steps[max(done - embedded, 0) : max(done + count - embedded, 0)])
                ]
                if done < embedded:
                    tensors.append(("embeddings", prefix.embeddings[done : done + count]))
                outputs = await self._prefix_call(slot, tensors, prefix, done, draw)
                _, microseconds = outputs["progress"].ravel().tolist()
                self.pacer.measured(count, microseconds / 1e6)
            done += count

    async def _prefix_call(
        self,
        slot: int,
        tensors: Sequence[tuple[str, Array]],
        prefix: PromptPrefix,
        first: int,
        draw: tuple[Tokens, Floats],
    ) -> Outputs:
        """A call about a prompt, whose first step in `tensors` is step `first`."""
        # Layout of `prefix`: first step, steps in all, SHA-256 as four int64.
        mark = np.frombuffer(np.array([first, prefix.cacheable], np.int64).tobytes() + prefix.digest, np.int64)
        named = [*tensors, ("prefix", mark)]
        inputs = [TensorSpec(name, "FP32" if name == "embeddings" else "INT64", array.shape) for name, array in named]
        inputs = [tensor.batched(1, 1) for tensor in (*inputs, *_SAMPLER)]
        payload = [np.ascontiguousarray(array).tobytes() for array in (*(array for _, array in named), *draw)]
        row, key = self._members[TEMPORAL][slot].tolist()
        return await self._call(TEMPORAL, slot, inputs, payload, row, key)

    async def _call(
        self,
        model: str,
        slot: int,
        inputs: Sequence[TensorSpec],
        payload: Sequence[bytes],
        row: int,
        key: int,
        *,
        start: bool = False,
    ) -> Outputs:
        """A call on a slot's own sequence, for that slot alone."""
        self._renewed_at[model][slot] = self._clock()
        head = request_head(model, [*inputs, _MEMBERS.batched(1, 1)], _sequence_id(slot), start=start)
        member = np.array([row, key], np.int64).tobytes()
        try:
            deadline = self._step_deadline if start else self._prefill_deadline
            call = asyncio.ensure_future(self._http.request([head, *payload, member], deadline))
            # A call that is cut in two would leave the sequence in an unknown state.
            self._calls[model, slot].add(call)
            return await asyncio.shield(call)
        except (TritonUnreachable, TritonRejected) as error:
            raise _engine_error(error, model) from error


class _Fill:
    """The feeding of one prompt: by one conversation at a time; `attempts`: how often it has been tried."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.attempts = 0


def _sequence_id(slot: int) -> str:
    return f"slot-{slot}"


def _engine_error(error: TritonUnreachable | TritonRejected, model: str) -> EngineUnavailable | EngineError:
    """What a client may know. Triton's own words name addresses and internals, so they go to the log."""
    line = _line(error)
    logger.warning("a call to %s failed: %s", model, line)
    if isinstance(error, TritonUnreachable):
        return EngineUnavailable(f"Triton is not available ({model})")
    if "must specify the START flag" in line:
        return EngineUnavailable(f"Triton no longer has this conversation ({model}): it was restarted or too slow")
    if error.status in _UNAVAILABLE:
        return EngineUnavailable(f"Triton is not available ({model}, HTTP {error.status})")
    return EngineError(f"Triton failed ({model}, HTTP {error.status})")


def _line(error: TritonUnreachable | TritonRejected) -> str:
    first = str(error).splitlines()[0] if str(error) else "no details"
    return f"HTTP {error.status}: {first}" if isinstance(error, TritonRejected) else first
