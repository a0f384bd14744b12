"""From a request's fields to a question the models can be asked: names looked up, audio decoded, defaults filled in."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import TypeVar

from gateway.api.schemas import PersonaWishes, RespondRequest
from gateway.audio.decode import decode
from gateway.calls import Calls, Persona
from gateway.conversation.engine import Floats
from gateway.conversation.persona import DEFAULT_SYSTEM_PROMPT, system_prompt
from gateway.conversation.sampling import Sampling
from gateway.errors import InvalidRequest, NotAllowed
from gateway.kept import Kept
from gateway.keys import KeyHolder
from gateway.voices.clip import recorded_voice

T = TypeVar("T")

_FIXED_AT_START = (
    "voice", "voice_audio", "system_prompt", "text_prompt", "greedy", "seed",
    "audio_temperature", "audio_top_k", "text_temperature", "text_top_k",
)  # fmt: skip

# Seeds we choose stay exact in readers that keep JSON numbers as doubles.
_CHOSEN_SEED_BITS = 53


@dataclass(frozen=True, eq=False)
class Question:
    """A request, checked and decoded. pcm: [T] float32 at the model's rate."""

    pcm: Floats
    persona: Persona
    sampling: Sampling
    max_steps: int | None
    with_tokens: bool
    key: KeyHolder | None = None
    kept: Kept | None = None
    """The conversation this is a turn of."""
    keep: bool = False
    """Whether it goes on after this turn."""

    @property
    def voice(self) -> str:
        """What the answer calls the voice."""
        return self.persona.voice if isinstance(self.persona.voice, str) else "voice_audio"


async def understand(asked: RespondRequest, calls: Calls, key: KeyHolder | None = None) -> Question:
    """Everything that can be wrong with a request, short of asking the models; `key` is who asks.

    Raises InvalidRequest, NotAllowed or UnknownConversation.
    """
    settings, manifest = calls.settings, calls.manifest
    if asked.max_steps is not None and asked.max_steps > settings.max_steps:
        raise InvalidRequest(f"expected at most {settings.max_steps} steps, got {asked.max_steps}", field="max_steps")
    if asked.conversation_id is not None:
        return await _next_turn(asked, calls, key)
    who = persona(asked, calls)
    if asked.voice_audio is not None:
        if not settings.allow_voice_audio:
            raise NotAllowed("taking the voice from a recording (voice_audio) is switched off here")
        if asked.voice is not None:
            raise InvalidRequest("expected voice or voice_audio, got both", field="voice_audio")
        seconds = settings.max_voice_seconds
        voice = await asyncio.to_thread(
            recorded_voice, asked.voice_audio, manifest.sample_rate, seconds, field="voice_audio"
        )
        who = Persona(voice, who.text)
    pcm = await asyncio.to_thread(decode, asked.audio, manifest.sample_rate, settings.max_audio_seconds)
    drawn = sampling(asked, calls)
    kept = calls.kept.new(who, drawn, key) if asked.keep else None
    with_tokens = "tokens" in (asked.include or ())
    return Question(pcm, who, drawn, asked.max_steps, with_tokens, key, kept, keep=bool(asked.keep))


async def _next_turn(asked: RespondRequest, calls: Calls, key: KeyHolder | None) -> Question:
    """A question to a conversation that is under way, and that stays as it began."""
    for field in _FIXED_AT_START:
        if getattr(asked, field) is not None:
            raise InvalidRequest(f"{field} cannot change in a conversation that is under way", field)
    kept = calls.kept.find(asked.conversation_id or "", key)
    pcm = await asyncio.to_thread(decode, asked.audio, calls.manifest.sample_rate, calls.settings.max_audio_seconds)
    with_tokens, keep = "tokens" in (asked.include or ()), asked.keep is not False
    return Question(pcm, kept.persona, kept.sampling, asked.max_steps, with_tokens, key, kept, keep)


def persona(asked: PersonaWishes, calls: Calls) -> Persona:
    """A preset voice and a prompt. Raises UnknownVoice, UnknownSystemPrompt or InvalidRequest."""
    text = _text(asked)
    return Persona(_voice(asked, calls), text)


def sampling(asked: PersonaWishes, calls: Calls) -> Sampling:
    """How to draw, the repository's defaults where nothing is asked."""
    manifest, default = calls.manifest, calls.manifest.sampling
    drawn = Sampling(
        seed=_given(asked.seed, secrets.randbits(_CHOSEN_SEED_BITS)),
        audio_temperature=_given(asked.audio_temperature, default.audio_temperature),
        audio_top_k=min(_given(asked.audio_top_k, default.audio_top_k), manifest.card),
        text_temperature=_given(asked.text_temperature, default.text_temperature),
        text_top_k=min(_given(asked.text_top_k, default.text_top_k), manifest.text_card),
    )
    return drawn.greedy() if asked.greedy else drawn


def _text(asked: PersonaWishes) -> str:
    if asked.text_prompt is None:
        return system_prompt(DEFAULT_SYSTEM_PROMPT if asked.system_prompt is None else asked.system_prompt)
    if asked.system_prompt is not None:
        raise InvalidRequest("expected system_prompt or text_prompt, got both", field="text_prompt")
    return asked.text_prompt


def _voice(asked: PersonaWishes, calls: Calls) -> str:
    return calls.manifest.voices.require(calls.default_voice if asked.voice is None else asked.voice).name


def _given(value: T | None, default: T) -> T:
    return default if value is None else value
