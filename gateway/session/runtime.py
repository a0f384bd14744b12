"""A call from beginning to end, the same for every face: persona, slot, conversation, release, and its figures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gateway.engine.backend import Engine, Floats, Tokens
from gateway.engine.cohort import Cohort
from gateway.engine.conversation import Conversation
from gateway.engine.sampling import Sampling
from gateway.errors import GatewayError
from gateway.manifest import Manifest
from gateway.session.admission import Admission, Slot
from gateway.session.keys import KeyHolder, Keys
from gateway.session.persona import Prefix, check_prompt, prefix_of_codes, prefix_of_preset
from gateway.session.readiness import Readiness
from gateway.session.recorded import split
from gateway.session.session_info import SessionInfo
from gateway.session.stats import SessionStats
from gateway.session.tokenizer import Tokenizer
from gateway.session.turns import TurnSessions
from gateway.session.warmup import Warmup
from gateway.settings import Settings
from gateway.telemetry.metrics import Metrics
from gateway.voices.registry import VoiceRegistry

# What it takes to tell every caller that their conversation is over.
_LAST_WORDS_S = 3.0


class Stoppable(Protocol):
    """Work that can be ended from outside."""

    def stop_for_drain(self) -> None:
        """End now: the drain time is over, or the operator ends the session."""


@dataclass(frozen=True, eq=False)
class Persona:
    """Who the agent is. `voice`: the name of a preset, or a recording [T] float32 at 24 kHz. `text` may be empty."""

    voice: str | Floats
    text: str


@dataclass(eq=False)
class ConversationLease:
    """A conversation that holds a slot, and its figures so far.

    `reason`: why it ended, for the metrics; set it where it is not what its end alone tells.
    """

    conversation: Conversation
    stats: SessionStats
    reason: str = "completed"


class Runtime:
    """What the running gateway holds: the engine, the slots, the shared frames."""

    def __init__(self, settings: Settings, manifest: Manifest, engine: Engine, metrics: Metrics) -> None:
        self.settings = settings
        self.manifest = manifest
        self.engine = engine
        self.metrics = metrics
        self.voices = VoiceRegistry(manifest)
        self.tokenizer = Tokenizer(manifest.tokenizer_path, manifest.text_card, manifest.text_padding_id)
        self.admission = Admission(manifest.slots, settings.retry_after, metrics, settings.upload_budget_bytes)
        self.cohort = Cohort(settings.batch_window, settings.cohort_patience, metrics.shared)
        self.keys = Keys(settings.api_keys, settings.key_conversations, settings.retry_after)
        self.kept = TurnSessions(self, settings.turn_session_idle_seconds)
        self.readiness = Readiness(engine)
        self.warmup = Warmup(self, settings.warm)
        self._live: dict[Stoppable, SessionInfo | None] = {}
        self._stopping = False
        self._drain: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()
        self._releasing: set[asyncio.Task[None]] = set()

    @property
    def draining(self) -> bool:
        """Whether new conversations are refused because the server is about to stop."""
        return self.admission.draining

    @property
    def default_voice(self) -> str:
        """The voice of a request that names none: the first one if the operator's choice is not there."""
        name, voices = self.settings.default_voice, self.voices.available()
        return name if name in voices else next(iter(voices), name)

    def stats(self) -> SessionStats:
        """A fresh watch on a conversation's frames, or on one turn's."""
        return SessionStats(self.metrics, 1 / self.manifest.frame_rate)

    @asynccontextmanager
    async def open(
        self, persona: Persona, sampling: Sampling, key: KeyHolder | None = None, slot: Slot | None = None
    ) -> AsyncIterator[ConversationLease]:
        """A conversation in a slot of its own, not yet started; released and counted on the way out, whatever happens.

        It counts for `key`, if there is one. `slot`: reserved before; otherwise one is taken. Raises Draining,
        TooManyForKey, AtCapacity, UnknownVoice, PromptTooLong, AudioError, EngineUnavailable or EngineError.
        """
        prepared = self._prepare(persona)
        held = AsyncExitStack()
        held.callback((self.admission.acquire(key) if slot is None else slot.claim()).release)
        stats = self.stats()
        reason = "error"
        try:
            prefix = prepared if isinstance(prepared, Prefix) else await self._with_voice(held, *prepared)
            conversation = Conversation(
                self.engine.open(),
                prefix,
                sampling,
                self.manifest,
                self.tokenizer,
                self.cohort,
                observe=lambda frame: call.stats.observe(frame),
                prefilled=self.metrics.prefilled,
            )
            held.push_async_callback(conversation.close)
            call = ConversationLease(conversation, stats)
            try:
                yield call
            finally:
                call.stats.finish()
            reason = call.reason
        except (asyncio.CancelledError, GeneratorExit):
            reason = "disconnected"
            raise
        except GatewayError as error:
            reason = error.end_reason
            raise
        finally:
            self.metrics.ended.labels(reason).inc()
            await self._release(held)

    @contextmanager
    def on_air(self, live: Stoppable, info: SessionInfo | None = None) -> Iterator[None]:
        """Register `live` while inside: it is stopped when the drain time is over, and listed if it has an `info`."""
        self._live[live] = info
        try:
            yield
        finally:
            self._live.pop(live, None)

    def sessions(self) -> list[SessionInfo]:
        """Sessions that hold a slot, oldest first. A turn in progress and its turn session are one."""
        by_id: dict[str, SessionInfo] = {}
        for info in self._live.values():
            if info is not None:
                by_id.setdefault(info.id, info)
        return sorted(by_id.values(), key=lambda info: info.began)

    def end_session(self, session_id: str) -> bool:
        """End a session as a drain does; False if there is none with that id."""
        found = [live for live, info in self._live.items() if info is not None and info.id == session_id]
        for live in found:
            live.stop_for_drain()
        return bool(found)

    async def drain(self) -> None:
        """Refuse new conversations, let existing ones continue for the drain time, then end them with a reason.

        Called when the server stops; this drain cannot be cancelled. Returns when all have ended, or shortly after
        they were told to.
        """
        self._stopping = True
        await asyncio.shield(self.begin_drain())

    def cancel_drain(self) -> bool:
        """Accept new conversations again; False if the server is stopping.

        Sessions that the drain has ended stay ended.
        """
        if self._stopping:
            return False
        self.admission.draining = False
        if self._drain is not None:
            self._drain.cancel()
            self._drain = None
        return True

    def begin_drain(self) -> asyncio.Task[None]:
        """Refuse new conversations from now on; the rest of `drain` continues in a task. Idempotent."""
        if self._drain is None:
            self.admission.draining = True
            self._drain = asyncio.create_task(self._end_all())
        return self._drain

    def hurry_drain(self) -> None:
        """The drain time is over now."""
        self._hurry.set()

    async def _end_all(self) -> None:
        # Nobody is on the line of a conversation that waits for its next turn: it would only be waited for.
        await self.kept.end_waiting()
        await self._until_empty(self.settings.drain_seconds, self._hurry)
        for live in list(self._live):
            live.stop_for_drain()
        await self._until_empty(_LAST_WORDS_S)

    async def _until_empty(self, seconds: float, *others: asyncio.Event) -> None:
        """Until no slot is taken, one of the events is set, or the time is over."""
        waits = [asyncio.ensure_future(event.wait()) for event in (self.admission.empty, *others)]
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def close(self) -> None:
        """End kept conversations, wait for those that are being released, then let go of the engine."""
        await self.kept.close()
        if self._releasing:
            await asyncio.wait(self._releasing)
        await self.engine.close()

    def _prepare(self, persona: Persona) -> Prefix | tuple[Floats, list[int]]:
        """All that can be refused before a slot is taken: a preset's whole prefix, or a recording ready to encode."""
        text_tokens = self.tokenizer.encode_prompt(persona.text)
        check_prompt(text_tokens, self.manifest)
        if isinstance(persona.voice, str):
            return prefix_of_preset(self.voices.require(persona.voice).preset, text_tokens, self.manifest)
        return split(persona.voice, self.manifest.frame_size), text_tokens

    async def _with_voice(self, held: AsyncExitStack, frames: Floats, text_tokens: list[int]) -> Prefix:
        """The prefix of a recording, encoded frame by frame in a sequence of its own that ends before ours begins."""
        session = self.engine.open()
        held.push_async_callback(session.close)
        codes: list[Tokens] = [await session.encode(frame) for frame in frames]
        await session.close()
        return prefix_of_codes(np.stack(codes), text_tokens, self.manifest)

    async def _release(self, held: AsyncExitStack) -> None:
        """Close what is held and then free the slot, in that order, even if the caller is cancelled meanwhile.

        The slot is not free before its rows are, or the next conversation would wait inside Triton. That may take
        longer than the caller is kept waiting.
        """
        task = asyncio.create_task(held.aclose())
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)
        await asyncio.wait([task], timeout=self.settings.release_wait)
