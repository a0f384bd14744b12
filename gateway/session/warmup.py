"""Warm-up: prefill configured personas before the first client connects, and again after Triton was restarted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from gateway.engine.conversation import Conversation
from gateway.engine.prefix import PromptPrefix
from gateway.engine.sampling import SamplingParams
from gateway.engine.scheduler import FrameScheduler
from gateway.errors import EngineError, EngineUnavailable, GatewayError, UnknownSystemPrompt
from gateway.manifest import Manifest
from gateway.session.admission import Admission
from gateway.session.persona import DEFAULT_SYSTEM_PROMPT, SYSTEM_PROMPTS, check_prompt, prefix_of_preset
from gateway.session.readiness import Readiness
from gateway.session.tokenizer import Tokenizer
from gateway.telemetry.metrics import Metrics
from gateway.voices.registry import VoiceRegistry

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.5
"""Shorter than a restart of Triton, so that none is missed."""

_GREEDY = SamplingParams(seed=0, audio_temperature=0.0, audio_top_k=1, text_temperature=0.0, text_top_k=1)


def prefix_of(persona: str, manifest: Manifest, voices: VoiceRegistry, tokenizer: Tokenizer) -> PromptPrefix:
    """The prompt of a persona written as VOICE or VOICE:PROMPT.

    PROMPT is the name of a preset prompt, or a text of more than one word, or empty for no text. Without a colon it is
    the default prompt. Raises UnknownVoice, UnknownSystemPrompt, PromptTooLong or RepositoryError.
    """
    voice, colon, prompt = persona.partition(":")
    name = prompt.strip() if colon else DEFAULT_SYSTEM_PROMPT
    if name and name not in SYSTEM_PROMPTS and len(name.split()) == 1:
        raise UnknownSystemPrompt(name, SYSTEM_PROMPTS)
    preset = voices.require(voice).preset
    text_tokens = tokenizer.encode_prompt(SYSTEM_PROMPTS.get(name, prompt))
    check_prompt(text_tokens, manifest)
    return prefix_of_preset(preset, text_tokens, manifest)


class Warmup:
    """Prefills `personas` (see `prefix_of`, which raises the same) once the backend is ready, and after it was away."""

    def __init__(
        self,
        personas: Sequence[str],
        manifest: Manifest,
        voices: VoiceRegistry,
        tokenizer: Tokenizer,
        scheduler: FrameScheduler,
        admission: Admission,
        readiness: Readiness,
        metrics: Metrics,
    ) -> None:
        self._personas = personas
        self._manifest = manifest
        self._voices = voices
        self._tokenizer = tokenizer
        self._scheduler = scheduler
        self._admission = admission
        self._readiness = readiness
        self._metrics = metrics
        self._warm = self._was_warm = not personas
        for persona in personas:
            prefix_of(persona, manifest, voices, tokenizer)

    async def ready(self) -> bool:
        """Whether the backend is ready and has the personas in its prefix cache.

        After an outage the personas are prefilled again, which takes a slot. While every slot is taken, conversations
        have survived, so Triton was not restarted and its cache is still valid.
        """
        if not await self._readiness.ready():
            self._warm = not self._personas
            return False
        return self._warm or (self._was_warm and self._admission.taken >= self._admission.slots)

    @property
    def prefilling(self) -> bool:
        """Whether the backend is ready and the personas are not."""
        return self._readiness.last and not self._warm

    async def keep(self) -> None:
        """Warm up, and repeat it when needed, until cancelled."""
        while self._personas:
            if not await self._readiness.ready():
                self._warm = False
            elif not self._warm:
                self._warm = await self._prefill_all()
                self._was_warm = self._was_warm or self._warm
            await asyncio.sleep(POLL_SECONDS)

    async def _prefill_all(self) -> bool:
        """Whether every persona was prefilled: not if the backend failed or every slot was taken.

        The first persona is prefilled once more at the end. If the prefix cache was too small, it is the one that was
        evicted.
        """
        first = self._personas[0]
        cached: dict[str, int] = {}
        for persona in [*self._personas, first]:
            try:
                prefix = prefix_of(persona, self._manifest, self._voices, self._tokenizer)
            except GatewayError as error:
                # A voice may have been removed since the start.
                logger.warning("cannot warm up %s: %s", persona, error.message)
                continue
            try:
                found = await self._prefill(prefix)
                if found is None:
                    return False
                cached[persona] = found
            except (EngineUnavailable, EngineError) as error:
                logger.warning("could not warm up %s: %s", persona, error.message)
                return False
        if cached.get(first) == 0:
            logger.warning(
                "the prefix cache does not hold all %d personas of the warm-up: PERSONAPLEX_PREFIX_COLUMNS, one window "
                "by default, must be at least the sum of their prompts' steps",
                len(self._personas),
            )
        return True

    async def _prefill(self, prefix: PromptPrefix) -> int | None:
        """Steps that came from the prefix cache; None if every slot is taken."""
        slot = self._admission.acquire_for_warmup()
        if slot is None:
            return None
        conversation = Conversation(self._scheduler, prefix, _GREEDY)
        observed = _Prefilled()
        conversation.observer = observed
        try:
            await conversation.start()
        finally:
            await conversation.close()
            slot.release()
        self._metrics.prefill_steps.inc(observed.fed)
        self._metrics.cached_steps.inc(observed.cached)
        return observed.cached


class _Prefilled:
    """Steps of one prefill."""

    fed = cached = 0

    def starting(self) -> None:
        """Not used."""

    def started(self, fed: int, cached: int) -> None:
        self.fed, self.cached = fed, cached

    def first_audio(self) -> None:
        """Does not happen: no user frame follows."""
