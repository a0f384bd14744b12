"""Prepare requests: look up names, decode audio, fill in defaults."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import TypeVar

from gateway.api.rest.schemas import PersonaParams, RespondRequest
from gateway.audio.decode import decode
from gateway.engine.backend import Floats
from gateway.engine.sampling import SamplingParams
from gateway.errors import InvalidRequest, NotAllowed
from gateway.session.admission import Slot, Upload
from gateway.session.keys import KeyHolder
from gateway.session.persona import DEFAULT_SYSTEM_PROMPT, Persona, system_prompt
from gateway.session.runtime import Runtime
from gateway.session.turns import TurnSession
from gateway.voices.recording import recorded_voice

T = TypeVar("T")

_FIXED_AT_START = (
    "voice", "voice_audio", "system_prompt", "text_prompt", "greedy", "seed",
    "audio_temperature", "audio_top_k", "text_temperature", "text_top_k",
)  # fmt: skip

# Seeds we choose stay exact in readers that keep JSON numbers as doubles.
_CHOSEN_SEED_BITS = 53


@dataclass(frozen=True, eq=False)
class RecordedRequest:
    """A request, checked and decoded. pcm: [T] float32 at the model's rate."""

    pcm: Floats
    persona: Persona
    sampling: SamplingParams
    max_steps: int | None
    with_tokens: bool
    key: KeyHolder | None = None
    kept: TurnSession | None = None
    """The conversation this is a turn of."""
    keep: bool = False
    """Whether it continues after this turn."""
    slot: Slot | None = None
    """Reserved for a new conversation."""

    @property
    def voice(self) -> str:
        """What the answer calls the voice."""
        return self.persona.voice if isinstance(self.persona.voice, str) else "voice_audio"


async def prepare(asked: RespondRequest, runtime: Runtime, key: KeyHolder | None, upload: Upload) -> RecordedRequest:
    """Check a request and decode its audio, whose bytes are then released.

    Args:
        asked: the request.
        runtime: looks up voices, prompts and turn sessions.
        key: of the request.
        upload: holds the request's bytes and a slot for a new conversation.

    Raises:
        InvalidRequest, NotAllowed, UnknownConversation: the request is at fault.
        AtCapacity, TooManyForKey: it needs a slot, and was admitted as the turn of a conversation.
    """
    try:
        return await _prepare(asked, runtime, key, upload)
    finally:
        # To close a file of 64 MiB takes 25 ms.
        asyncio.get_running_loop().run_in_executor(None, asked.close)
        upload.body_decoded()


async def _prepare(asked: RespondRequest, runtime: Runtime, key: KeyHolder | None, upload: Upload) -> RecordedRequest:
    settings, manifest = runtime.settings, runtime.manifest
    if asked.max_steps is not None and asked.max_steps > settings.max_steps:
        raise InvalidRequest(f"expected at most {settings.max_steps} steps, got {asked.max_steps}", field="max_steps")
    if asked.conversation_id is not None:
        upload.release_slot()
        return await _next_turn(asked, runtime, key)
    slot = upload.slot()
    who = persona(asked, runtime)
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
    drawn = sampling(asked, runtime)
    kept = runtime.turn_sessions.new(who, drawn, key) if asked.keep else None
    with_tokens = "tokens" in (asked.include or ())
    return RecordedRequest(pcm, who, drawn, asked.max_steps, with_tokens, key, kept, bool(asked.keep), slot)


async def _next_turn(asked: RespondRequest, runtime: Runtime, key: KeyHolder | None) -> RecordedRequest:
    """Prepare a turn of an existing conversation, whose persona and sampling do not change."""
    for field in _FIXED_AT_START:
        if getattr(asked, field) is not None:
            raise InvalidRequest(f"{field} cannot change in a conversation that is under way", field)
    kept = runtime.turn_sessions.find(asked.conversation_id or "", key)
    pcm = await asyncio.to_thread(decode, asked.audio, runtime.manifest.sample_rate, runtime.settings.max_audio_seconds)
    with_tokens, keep = "tokens" in (asked.include or ()), asked.keep is not False
    return RecordedRequest(pcm, kept.persona, kept.sampling, asked.max_steps, with_tokens, key, kept, keep)


def persona(asked: PersonaParams, runtime: Runtime) -> Persona:
    """A preset voice and a prompt. Raises UnknownVoice, UnknownSystemPrompt or InvalidRequest."""
    text = _text(asked)
    return Persona(_voice(asked, runtime), text)


def sampling(asked: PersonaParams, runtime: Runtime) -> SamplingParams:
    """How to draw, the repository's defaults where nothing is asked."""
    manifest, default = runtime.manifest, runtime.manifest.sampling
    drawn = SamplingParams(
        seed=_given(asked.seed, secrets.randbits(_CHOSEN_SEED_BITS)),
        audio_temperature=_given(asked.audio_temperature, default.audio_temperature),
        audio_top_k=min(_given(asked.audio_top_k, default.audio_top_k), manifest.card),
        text_temperature=_given(asked.text_temperature, default.text_temperature),
        text_top_k=min(_given(asked.text_top_k, default.text_top_k), manifest.text_card),
    )
    return drawn.greedy() if asked.greedy else drawn


def _text(asked: PersonaParams) -> str:
    if asked.text_prompt is None:
        return system_prompt(DEFAULT_SYSTEM_PROMPT if asked.system_prompt is None else asked.system_prompt)
    if asked.system_prompt is not None:
        raise InvalidRequest("expected system_prompt or text_prompt, got both", field="text_prompt")
    return asked.text_prompt


def _voice(asked: PersonaParams, runtime: Runtime) -> str:
    return runtime.voices.require(runtime.default_voice if asked.voice is None else asked.voice).name


def _given(value: T | None, default: T) -> T:
    return default if value is None else value
