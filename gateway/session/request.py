"""Prepare requests: look up names, decode audio, fill in defaults."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import TypeVar

from gateway.audio.decode import decode
from gateway.engine.backend import Floats
from gateway.engine.sampling import SamplingParams
from gateway.errors import InvalidRequest, NotAllowed
from gateway.session.admission import Slot, Upload
from gateway.session.caller import Caller
from gateway.session.events import Ended
from gateway.session.limits import LiveLimits
from gateway.session.live import LiveTransport
from gateway.session.params import LiveParams, PersonaParams, RespondRequest
from gateway.session.persona import DEFAULT_SYSTEM_PROMPT, Persona, system_prompt
from gateway.session.runtime import Runtime
from gateway.session.turns import TurnSession
from gateway.voices.recording import recorded_voice

T = TypeVar("T")

_FIXED_AT_START = (
    "voice", "voice_audio", "system_prompt", "text_prompt", "greedy", "seed",
    "audio_temperature", "audio_top_k", "text_temperature", "text_top_k",
)  # fmt: skip

# A random seed stays exact in clients that read JSON numbers as doubles.
_CHOSEN_SEED_BITS = 53


@dataclass(frozen=True, eq=False)
class RecordedRequest:
    """A request, checked and decoded. pcm: [T] float32 at the model's sample rate."""

    pcm: Floats
    persona: Persona
    sampling: SamplingParams
    max_steps: int | None
    with_tokens: bool
    caller: Caller
    turn_session: TurnSession | None = None
    """The session that this request is a turn of."""
    keep: bool = False
    """Whether the turn session continues after this turn."""
    slot: Slot | None = None
    """Reserved for a new conversation."""

    @property
    def voice(self) -> str:
        """Name of the voice in the response."""
        return self.persona.voice_name


async def prepare(params: RespondRequest, runtime: Runtime, caller: Caller, upload: Upload) -> RecordedRequest:
    """Check a request and decode its audio, whose bytes are then released.

    Args:
        params: the request as received.
        runtime: provides voices, prompts and turn sessions.
        caller: whose request it is.
        upload: holds the request's bytes and a slot for a new conversation.

    Raises:
        InvalidRequest, NotAllowed, UnknownConversation: the request is invalid.
        AtCapacity, TooManyForKey: it needs a slot, and was admitted as the turn of a conversation.
    """
    try:
        return await _prepare(params, runtime, caller, upload)
    finally:
        # Closing a file of 64 MiB takes 25 ms.
        asyncio.get_running_loop().run_in_executor(None, params.close)
        upload.body_decoded()


async def _prepare(params: RespondRequest, runtime: Runtime, caller: Caller, upload: Upload) -> RecordedRequest:
    settings, manifest = runtime.settings, runtime.manifest
    if params.max_steps is not None and params.max_steps > settings.max_steps:
        raise InvalidRequest(f"expected at most {settings.max_steps} steps, got {params.max_steps}", field="max_steps")
    if params.conversation_id is not None:
        upload.release_slot()
        return await _next_turn(params, runtime, caller)
    slot = upload.slot()
    agent = persona(params, runtime)
    if params.voice_audio is not None:
        if not settings.allow_voice_audio:
            raise NotAllowed("voice_audio is disabled on this server")
        if params.voice is not None:
            raise InvalidRequest("expected voice or voice_audio, got both", field="voice_audio")
        seconds = settings.max_voice_seconds
        voice = await asyncio.to_thread(
            recorded_voice, params.voice_audio, manifest.sample_rate, seconds, field="voice_audio"
        )
        agent = Persona(voice, agent.text)
    pcm = await asyncio.to_thread(decode, params.audio, manifest.sample_rate, settings.max_audio_seconds)
    sampling = sampling_params(params, runtime)
    session = runtime.turn_sessions.new(agent, sampling, caller) if params.keep else None
    with_tokens = "tokens" in (params.include or ())
    return RecordedRequest(
        pcm, agent, sampling, params.max_steps, with_tokens, caller, session, bool(params.keep), slot
    )


async def _next_turn(params: RespondRequest, runtime: Runtime, caller: Caller) -> RecordedRequest:
    """Prepare a turn of an existing conversation, whose persona and sampling do not change."""
    _check_unchanged(params)
    session = runtime.turn_sessions.find(params.conversation_id or "", caller.key)
    sample_rate, seconds = runtime.manifest.sample_rate, runtime.settings.max_audio_seconds
    pcm = await asyncio.to_thread(decode, params.audio, sample_rate, seconds)
    with_tokens, keep = "tokens" in (params.include or ()), params.keep is not False
    return RecordedRequest(pcm, session.persona, session.sampling, params.max_steps, with_tokens, caller, session, keep)


async def run_live_session(
    transport: LiveTransport,
    params: LiveParams,
    runtime: Runtime,
    caller: Caller,
    limits: LiveLimits | None = None,
    slot: Slot | None = None,
    token: str | None = None,
) -> Ended:
    """Run a live session over a connection: a new one, or the one that the resume token names.

    Args:
        transport: the connection.
        params: as received. Those of a session that is resumed do not change, but for the gap policy.
        runtime: provides voices, prompts and sessions.
        caller: whose connection it is.
        limits: of a new session; None for those of the settings.
        slot: reserved for a new session.
        token: resume token, NEW_TOKEN if the client can resume the session, or None.

    Raises:
        InvalidRequest, UnknownVoice, UnknownSystemPrompt: the parameters are invalid.
        UnknownConversation, TakenOver: see `LiveSession.run`.
        GatewayError: what `Leases.open` raises.
    """
    if (resumed := runtime.live_sessions.find(token, caller)) is not None:
        _check_unchanged(params)
        return await resumed.run(transport, params.on_gap)
    agent, sampling = persona(params, runtime), sampling_params(params, runtime)
    opened = runtime.live_sessions.open(agent, sampling, caller, params.on_gap or "wait", limits, slot, token)
    async with opened as session:
        return await session.run(transport)


def persona(params: PersonaParams, runtime: Runtime) -> Persona:
    """Look up the preset voice and the prompt. Raises UnknownVoice, UnknownSystemPrompt or InvalidRequest."""
    text = _text(params)
    return Persona(_voice(params, runtime), text)


def sampling_params(params: PersonaParams, runtime: Runtime) -> SamplingParams:
    """Fill in the manifest's defaults, and a random seed, for values that are not set."""
    manifest, default = runtime.manifest, runtime.manifest.sampling
    sampling = SamplingParams(
        seed=_given(params.seed, secrets.randbits(_CHOSEN_SEED_BITS)),
        audio_temperature=_given(params.audio_temperature, default.audio_temperature),
        audio_top_k=min(_given(params.audio_top_k, default.audio_top_k), manifest.card),
        text_temperature=_given(params.text_temperature, default.text_temperature),
        text_top_k=min(_given(params.text_top_k, default.text_top_k), manifest.text_card),
    )
    most = manifest.max_text_top_k or manifest.text_card
    if most < manifest.text_card and not 0 < sampling.text_top_k <= most:
        raise InvalidRequest(f"text_top_k must be in 1..{most} on this server", "text_top_k")
    return sampling.greedy() if params.greedy else sampling


def _check_unchanged(params: PersonaParams) -> None:
    """Raise InvalidRequest for parameters that are fixed at the start of a conversation."""
    for field in _FIXED_AT_START:
        if getattr(params, field, None) is not None:
            raise InvalidRequest(f"{field} cannot change in a conversation that is under way", field)


def _text(params: PersonaParams) -> str:
    if params.text_prompt is None:
        return system_prompt(DEFAULT_SYSTEM_PROMPT if params.system_prompt is None else params.system_prompt)
    if params.system_prompt is not None:
        raise InvalidRequest("expected system_prompt or text_prompt, got both", field="text_prompt")
    return params.text_prompt


def _voice(params: PersonaParams, runtime: Runtime) -> str:
    return runtime.voices.require(runtime.default_voice if params.voice is None else params.voice).name


def _given(value: T | None, default: T) -> T:
    return default if value is None else value
