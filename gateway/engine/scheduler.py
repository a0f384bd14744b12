"""The frame scheduler: collect user frames that are ready, run them as one batch, deliver the agent's frames.

User frame u goes in, agent frame u + 1 comes out. Agent frame u + 1 needs nothing later than user frame u, so it leaves
one step ahead of real time. Agent frame 0 needs no user frame: it is the silence that the prompt ends with.

A run of a model costs much by itself and little per row. So all frames that are ready go into one batch, and the next
batch is collected when this one is through the temporal model or at its end. When a batch starts is decided in
`_collect` and by the constants below, nowhere else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from heapq import heappop, heappush
from time import perf_counter
from typing import Any, TypeVar

import numpy as np

from gateway.engine.backend import Backend, BatchRejected, Floats, Prefilled, TemporalOutput, Tokens
from gateway.engine.batch import AgentFrame, FrameBatch, FrameRequest, StageSeconds
from gateway.engine.forced_text import ForcedText
from gateway.engine.grid import AGENT, TEXT, TokenGrid
from gateway.engine.prefix import PromptPrefix
from gateway.engine.sampling import AUDIO, POSITION, SamplingParams, SlotSamplers
from gateway.engine.sampling import TEXT as TEXT_SAMPLER
from gateway.errors import EngineError, EngineUnavailable
from gateway.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

T = TypeVar("T")

MANY = 4
"""Batches of live frames are spaced apart (`SPACING`) from so many frames on. With fewer the wait costs more latency
than a larger batch saves."""

SPACING = 1.5
"""From the start of a batch to the start of the next one, in durations of a batch, while many live sessions run.

Batches overlap less and are larger then. A run costs much by itself, so this saves processor time, which the rest of
the machine needs where the models run on the CPU: 28 users on two threads took 3.0 ms per frame, all processes
together, instead of 3.9."""

LIVE_SECONDS = 1.0
"""Live sessions run while the last live frame is not older than this. Each has a frame every 80 ms."""

OVERLAP_SHARE = 1 / 3
"""Share of a batch's time behind the temporal model from which the next batch starts beside it.

With small models or on a GPU these stages take half of the time, and two batches in flight shorten every wait. Where
nearly all time is the temporal model's, which reads its weights once for any number of rows, one batch for all is
faster than two halves in turn."""

_SMOOTHING = 0.1
"""Weight of the newest batch in the moving averages."""

LANES = 2
"""Batches in flight at most: one in the encoder or the temporal model, one behind it."""


class FrameScheduler:
    """Runs the conversations of all slots on one backend, from one event loop.

    Recordings have their next frame ready as soon as the last one is answered. While no live session runs they go all
    together, one batch at a time. Live frames arrive at any moment of 80 ms: two batches may overlap, and large ones
    are spaced apart.
    """

    def __init__(
        self,
        backend: Backend,
        slots: int,
        delays: Sequence[int],
        text_pieces: Sequence[str],
        metrics: Metrics,
        max_interval: float = 0.0,
        text_padding_id: int = 3,
    ) -> None:
        """`text_pieces`: what is shown for each text token. `text_padding_id`: the token between words.

        `max_interval`: longest time in seconds that the spacing of batches keeps the next one waiting, counted from the
        start of the last one.
        """
        self.backend = backend
        self._grid = TokenGrid(slots, delays)
        self._samplers = SlotSamplers(slots)
        self._forced = ForcedText(text_padding_id)
        self._frames = [0] * slots
        self._free = list(range(slots))
        """A heap: the lowest slot is taken, because a batch costs the backend less the lower its slots are."""
        self._text_pieces = text_pieces
        self._metrics = metrics
        self._max_interval = max_interval
        self.queue: asyncio.Queue[FrameRequest] = asyncio.Queue()
        """User frames that wait for a batch."""
        self._running: set[FrameBatch] = set()
        self._calls: dict[int, asyncio.Task[Any]] = {}
        """The last call outside of a batch, by slot."""
        self._collecting = asyncio.Lock()
        self._changed = asyncio.Event()
        """Set when a batch is through the temporal model, or has ended."""
        self._ahead: FrameBatch | None = None
        """The batch that must pass before the next one, or a chunk of a prompt, may start."""
        self._between = asyncio.Event()
        """Set while there is none."""
        self._between.set()
        self._last_size = 0
        self._last_began = 0.0
        self._duration = 0.0
        """Moving average of a batch's seconds."""
        self._live_until = 0.0
        self._overlap_share = 0.0
        self._lanes: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """One lane: one batch after the other, from collection to delivery, until cancelled."""
        backend, grid, samplers = self.backend, self._grid, self._samplers
        rejected: list[FrameBatch] = []
        while True:
            batch = rejected.pop() if rejected else await self._collect()
            slots, stages = batch.slots, batch.stages
            error: Exception | None = None
            try:
                began = perf_counter()
                if batch.user_codes is None:
                    batch.user_codes = await backend.encode(slots, batch.pcm)
                encoded = perf_counter()
                stages.encode += encoded - began
                if batch.output is None:
                    steps = grid.advance(slots, batch.user_codes)
                    batch.output = await backend.step(
                        slots, steps, samplers.sampler[slots, TEXT_SAMPLER], samplers.temperature[slots, TEXT_SAMPLER]
                    )
                    if self._forced.waiting:
                        text_tokens = self._forced.apply(slots, batch.output.text_tokens)
                        batch.output = TemporalOutput(batch.output.hidden, text_tokens)
                stepped = perf_counter()
                stages.temporal += stepped - encoded
                if self._ahead is batch and self._overlap_share >= OVERLAP_SHARE:
                    self._ahead = None
                    self._between.set()
                    self._changed.set()
                if batch.agent_codes is None:
                    batch.agent_codes = await backend.depformer(
                        batch.output, samplers.sampler[slots, AUDIO], samplers.temperature[slots, AUDIO]
                    )
                sampled = perf_counter()
                stages.depformer += sampled - stepped
                if batch.frames is None:
                    batch.frames = grid.emit(slots, batch.output.text_tokens, batch.agent_codes)
                    samplers.sampler[slots, :, POSITION] += 1
                pcm = await backend.decode(slots, np.ascontiguousarray(batch.frames[:, AGENT]))
                ended = perf_counter()
                stages.decode += ended - sampled
                duration = ended - batch.began_at
                self._duration += _SMOOTHING * (duration - self._duration)
                self._overlap_share += _SMOOTHING * ((ended - stepped) / duration - self._overlap_share)
                self._deliver(batch, batch.user_codes, batch.frames, pcm)
            except BatchRejected as rejection:
                if len(batch.requests) > 1:
                    rejected = batch.split()[::-1]
                    self._running.update(rejected)
                else:
                    error = rejection.error
            except (EngineUnavailable, EngineError) as failure:
                error = failure
            except Exception as failure:
                logger.exception("a batch of %d frames failed", len(batch.requests))
                error = failure
            finally:
                if error is not None:
                    self._fail(batch, error)
                self._running.discard(batch)
                batch.ended.set()
                if self._ahead is batch:
                    self._ahead = None
                    self._between.set()
                self._changed.set()

    async def _collect(self) -> FrameBatch:
        """The next batch: the frames that wait when it may start. Frames to be encoded do not mix with encoded ones."""
        loop, queue = asyncio.get_running_loop(), self.queue
        async with self._collecting:
            while True:
                first = await queue.get()
                while self._ahead is not None or len(self._running) >= (
                    LANES if first.live or loop.time() < self._live_until else 1
                ):
                    self._changed.clear()
                    await self._changed.wait()
                live = first.live or loop.time() < self._live_until
                spaced = live and self._last_size >= MANY
                interval = min(SPACING * self._duration, self._max_interval) if spaced else 0.0
                # Frames that are submitted in this turn of the loop are in the batch in any case.
                await asyncio.sleep(max(self._last_began + interval - perf_counter(), 0.0))
                requests: list[FrameRequest] = []
                later: list[FrameRequest] = []
                for request in (first, *(queue.get_nowait() for _ in range(queue.qsize()))):
                    if not request.answer.done():
                        (requests if (request.codes is None) == (first.codes is None) else later).append(request)
                        if request.live:
                            self._live_until = loop.time() + LIVE_SECONDS
                for request in later:
                    queue.put_nowait(request)
                if requests:
                    break
            codes = [request.codes for request in requests if request.codes is not None]
            batch = FrameBatch(
                requests,
                slots=np.array([request.slot for request in requests], np.int64),
                pcm=np.stack([request.pcm for request in requests]),
                user_codes=np.stack(codes) if codes else None,
            )
            self._last_size, self._last_began = len(requests), batch.began_at
            self._metrics.batch_size.observe(len(requests))
            self._ahead = batch
            self._between.clear()
            self._running.add(batch)
            return batch

    def _deliver(self, batch: FrameBatch, user_codes: Tokens, frames: Tokens, pcm: Floats) -> None:
        """Hand each conversation its frame; one that has ended meanwhile is skipped."""
        now = perf_counter()
        stages, metrics = batch.stages, self._metrics
        text_tokens = frames[:, TEXT].tolist()
        for row, request in enumerate(batch.requests):
            self._frames[request.slot] += 1
            if request.answer.done():
                continue
            seconds = now - request.submitted_at
            metrics.frame_seconds.observe(seconds)
            request.answer.set_result(
                AgentFrame(
                    index=self._frames[request.slot] - 1,
                    text_token=text_tokens[row],
                    text=self._text_pieces[text_tokens[row]],
                    codes=frames[row, AGENT],
                    pcm=pcm[row],
                    user_codes=user_codes[row],
                    stages=stages,
                    seconds=seconds,
                )
            )
        metrics.frames.inc(len(batch.requests))
        metrics.encode.observe(stages.encode)
        metrics.temporal.observe(stages.temporal)
        metrics.depformer.observe(stages.depformer)
        metrics.decode.observe(stages.decode)

    def _fail(self, batch: FrameBatch, error: Exception) -> None:
        for request in batch.requests:
            if not request.answer.done():
                request.answer.set_exception(error)

    # Requests of conversations.

    def open(self) -> int:
        """A free slot, to be given back with `release`. Raises RuntimeError if there is none: admission counts them."""
        if not self._free:
            raise RuntimeError("expected a free slot: admission allows no more conversations than slots")
        if not self._lanes:
            self._lanes = [asyncio.create_task(self.run(), name=f"frame-scheduler-{lane}") for lane in range(LANES)]
        return heappop(self._free)

    def filled(self, window: int) -> float:
        """Share of the positions of all slots that conversations fill; a slot has `window`."""
        return float(np.minimum(self._samplers.sampler[:, TEXT_SAMPLER, POSITION], window).mean() / window)

    def say(self, slot: int, words: Sequence[Sequence[int]]) -> None:
        """Have the agent of a slot say words, each of them text tokens; see `gateway.engine.forced_text`."""
        self._forced.add(slot, words)

    async def release(self, slot: int) -> None:
        """End the slot's sequences and free it, once no batch in flight has a frame of it.

        The conversation has cancelled the answer it waited for, so no frame of it will be in a batch.
        """
        while batch := next((batch for batch in self._running if slot in batch.slots), None):
            await batch.ended.wait()
        if slot in self._calls:
            await asyncio.wait([self._calls.pop(slot)])
        self._forced.clear(slot)
        await self.backend.release(slot)
        self._samplers.sampler[slot, :, POSITION] = 0
        heappush(self._free, slot)

    async def _whole(self, slot: int, call: Coroutine[Any, Any, T]) -> T:
        """Finish a slot's call even if its caller is cancelled: half a step leaves the slot in an unknown state."""
        task = asyncio.ensure_future(call)
        self._calls[slot] = task
        try:
            return await asyncio.shield(task)
        except BatchRejected as rejection:
            raise rejection.error from rejection

    async def encode(self, slot: int, pcm: Floats) -> Tokens:
        """Encode one user frame, pcm [1920] -> codes [8], outside of any batch."""
        codes: Tokens = (await self._whole(slot, self.backend.encode(np.array([slot]), pcm[None])))[0]
        return codes

    async def start(self, slot: int, prefix: PromptPrefix, params: SamplingParams) -> tuple[AgentFrame, Prefilled]:
        """Feed the prompt; returns agent frame 0, which is the forced silence.

        A prompt takes the time of many frames, so it is not part of a batch: its chunks are fed between batches.
        """
        began = perf_counter()
        self._grid.start(slot, prefix)
        self._samplers.set(slot, params, prefix.length)
        sampler, temperature = self._samplers.sampler[slot], self._samplers.temperature[slot]
        text, audio = slice(TEXT_SAMPLER, TEXT_SAMPLER + 1), slice(AUDIO, AUDIO + 1)
        await self._whole(slot, self.backend.open(slot))
        with self._metrics.waiting.track_inprogress():
            prefilled = await self.backend.prefill(slot, prefix, sampler[text], temperature[text], self._between.wait)
        fed = perf_counter()
        codes = await self.backend.depformer(prefilled.output, sampler[audio], temperature[audio])
        sampled = perf_counter()
        slots = np.array([slot])
        frame = self._grid.emit(slots, prefilled.output.text_tokens, codes)
        sampler[:, POSITION] += 1
        pcm = await self._whole(slot, self.backend.decode(slots, np.ascontiguousarray(frame[:, AGENT])))
        ended = perf_counter()
        self._frames[slot] = 1
        self._metrics.frames.inc()
        text_token = int(frame[0, TEXT])
        return (
            AgentFrame(
                index=0,
                text_token=text_token,
                text=self._text_pieces[text_token],
                codes=frame[0, AGENT],
                pcm=pcm[0],
                user_codes=None,
                stages=StageSeconds(temporal=fed - began, depformer=sampled - fed, decode=ended - sampled),
                seconds=ended - began,
            ),
            prefilled,
        )

    async def close(self) -> None:
        """Stop the lanes and close the backend. Conversations have been released before."""
        for lane in self._lanes:
            lane.cancel()
        if self._lanes:
            await asyncio.wait(self._lanes)
        await self.backend.close()
