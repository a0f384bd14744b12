"""Personas that the models know before their first caller comes, and again after Triton was restarted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gateway.engine.backend import Draw
from gateway.errors import EngineError, EngineUnavailable, GatewayError, UnknownSystemPrompt
from gateway.manifest import Manifest
from gateway.session.persona import DEFAULT_SYSTEM_PROMPT, SYSTEM_PROMPTS, Prefix, check_prompt, prefix_of_preset
from gateway.session.tokenizer import Tokenizer
from gateway.voices.registry import VoiceRegistry

if TYPE_CHECKING:
    from gateway.session.runtime import Runtime

logger = logging.getLogger(__name__)

# Less than Triton takes to come back, so that no restart goes unseen.
_LOOK_S = 0.5


def prefix_of(wish: str, manifest: Manifest, voices: VoiceRegistry, tokenizer: Tokenizer) -> Prefix:
    """What a conversation begins with whose persona is VOICE or VOICE:PROMPT.

    PROMPT is the name of a preset prompt, or a text, which has more than one word, or nothing; without it the prompt
    is the one of a request that names none. Raises UnknownVoice, UnknownSystemPrompt, PromptTooLong or RepositoryError.
    """
    voice, colon, prompt = wish.partition(":")
    name = prompt.strip() if colon else DEFAULT_SYSTEM_PROMPT
    if name and name not in SYSTEM_PROMPTS and len(name.split()) == 1:
        raise UnknownSystemPrompt(name, SYSTEM_PROMPTS)
    preset = voices.require(voice).preset
    text_tokens = tokenizer.encode_prompt(SYSTEM_PROMPTS.get(name, prompt))
    check_prompt(text_tokens, manifest)
    return prefix_of_preset(preset, text_tokens, manifest)


class Warmup:
    """Prefills each of `wishes` (see `prefix_of`, which raises the same) once the engine is ready, and whenever it has
    been away.
    """

    def __init__(self, runtime: Runtime, params: Sequence[str]) -> None:
        self._runtime = runtime
        self._wishes = params
        self._warm = self._was_warm = not params
        for wish in params:
            prefix_of(wish, runtime.manifest, runtime.voices, runtime.tokenizer)

    async def ready(self) -> bool:
        """Whether the engine is ready and has the personas in its prefix cache.

        After an outage the personas are prefilled again, which takes a slot. While every slot is taken, conversations
        have survived, so Triton was not restarted and its cache is still valid.
        """
        if not await self._runtime.readiness.ready():
            self._warm = not self._wishes
            return False
        admission = self._runtime.admission
        return self._warm or (self._was_warm and admission.taken >= admission.slots)

    @property
    def prefilling(self) -> bool:
        """Whether the engine is ready and the personas are not."""
        return self._runtime.readiness.last and not self._warm

    async def keep(self) -> None:
        """Warm up, and look after it until cancelled."""
        while self._wishes:
            if not await self._runtime.readiness.ready():
                self._warm = False
            elif not self._warm:
                self._warm = await self._prefill_all()
                self._was_warm = self._was_warm or self._warm
            await asyncio.sleep(_LOOK_S)

    async def _prefill_all(self) -> bool:
        """Whether all of them went into the models; not if the engine failed or every slot was taken.

        Then the first one is asked for again: if there was no room for all, it is the one that had to go.
        """
        first = self._wishes[0]
        cached: dict[str, int] = {}
        for wish in [*self._wishes, first]:
            try:
                prefix = prefix_of(wish, self._runtime.manifest, self._runtime.voices, self._runtime.tokenizer)
            except GatewayError as error:
                # A voice may have been removed since the start.
                logger.warning("cannot warm up %s: %s", wish, error.message)
                continue
            try:
                found = await self._prefill(prefix)
                if found is None:
                    return False
                cached[wish] = found
            except (EngineUnavailable, EngineError) as error:
                logger.warning("could not warm up %s: %s", wish, error.message)
                return False
        if cached.get(first) == 0:
            logger.warning(
                "the models do not remember all %d personas that were warmed up: PERSONAPLEX_PREFIX_COLUMNS, which is "
                "a window by default, must be the sum of their columns at least",
                len(self._wishes),
            )
        return True

    async def _prefill(self, prefix: Prefix) -> int | None:
        """Columns that were remembered; None if every slot is taken."""
        admission = self._runtime.admission
        if admission.draining or admission.taken >= admission.slots:
            return None
        slot = admission.acquire()
        session = self._runtime.engine.open()
        try:
            draw = Draw(seed=0, position=prefix.length, top_k=1, temperature=0.0)
            begun = await session.prefill(prefix.columns, prefix.embeddings, draw, self._runtime.cohort.between)
            self._runtime.metrics.prefilled(prefix.length - begun.cached, begun.cached)
        finally:
            await session.close()
            slot.release()
        return begun.cached
