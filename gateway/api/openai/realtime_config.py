"""Configuration of a Realtime session: what clients ask for, and what this server makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import BaseModel, Field

from gateway.api.openai.config import MODEL, CustomVoice, codec, live_params, resolve_voice, validate
from gateway.api.openai.errors import translate
from gateway.audio import g711
from gateway.audio.duplex import DuplexCodec
from gateway.errors import PromptTooLong
from gateway.session.params import LiveParams
from gateway.session.persona import Persona, check_prompt
from gateway.session.request import persona
from gateway.session.runtime import Runtime

SAMPLE_RATE: Literal[24_000] = 24_000
"""Of PCM. The API has no other."""

# Values that this server does not carry out are neither checked nor refused: the answer states what is in effect.


class Pcm(BaseModel):
    """16-bit little-endian samples, mono."""

    type: Literal["audio/pcm"]
    rate: Literal[24_000] = SAMPLE_RATE


class G711(BaseModel):
    """G.711 μ-law or A-law, at 8 kHz."""

    type: Literal["audio/pcmu", "audio/pcma"]


Format = Annotated[Pcm | G711, Field(discriminator="type")]


class TurnDetection(BaseModel):
    """When to report that the user speaks. Both types use the level of the audio."""

    type: Literal["server_vad", "semantic_vad"]
    prefix_padding_ms: int | None = Field(default=None, ge=0, le=10_000)
    silence_duration_ms: int | None = Field(default=None, ge=0, le=10_000)

    @property
    def padding_ms(self) -> int:
        """Audio before the speech that belongs to it."""
        return 300 if self.prefix_padding_ms is None else self.prefix_padding_ms

    @property
    def silence_ms(self) -> int:
        """Silence that ends speech."""
        return 500 if self.silence_duration_ms is None else self.silence_duration_ms

    def echo(self) -> dict[str, Any]:
        """The values in effect: the model itself decides when the agent speaks and stops."""
        fields: dict[str, Any] = {"type": self.type, "create_response": False, "interrupt_response": False}
        if self.type == "server_vad":
            fields |= {"prefix_padding_ms": self.padding_ms, "silence_duration_ms": self.silence_ms}
        return fields


class AudioInput(BaseModel):
    """The user's audio."""

    format: Format | None = None
    turn_detection: TurnDetection | None = None


class AudioOutput(BaseModel):
    """The agent's audio."""

    format: Format | None = None
    voice: str | CustomVoice | None = None


class Audio(BaseModel):
    """Both directions."""

    input: AudioInput | None = None
    output: AudioOutput | None = None


class SessionUpdate(BaseModel):
    """The field `session` of `session.update`. What is absent does not change."""

    type: Literal["realtime"]
    instructions: str | None = None
    audio: Audio | None = None


@dataclass(slots=True)
class RealtimeConfig:
    """The configuration of one session as resolved."""

    id: str
    params: LiveParams
    persona: Persona
    input: Pcm | G711
    output: Pcm | G711
    turn_detection: TurnDetection | None

    @classmethod
    def default(cls, runtime: Runtime) -> RealtimeConfig:
        """Make the configuration that `session.created` states."""
        params = live_params(runtime.default_voice, "")
        pcm = Pcm(type="audio/pcm")
        return cls(f"sess_{uuid4().hex}", params, persona(params, runtime), pcm, pcm, None)

    def update(self, session: object, runtime: Runtime, *, fixed: bool) -> None:
        """Change what an update asks for. Raises OpenAIError and then changes nothing.

        `fixed`: the session has started; instructions, voice and formats stay as they are.
        """
        asked = validate(SessionUpdate, session)
        audio = asked.audio or Audio()
        user, agent = audio.input or AudioInput(), audio.output or AudioOutput()
        if not fixed:
            voice = self.params.voice if agent.voice is None else resolve_voice(agent.voice, runtime)
            instructions = self.params.text_prompt if asked.instructions is None else asked.instructions
            params = live_params(voice or runtime.default_voice, instructions or "")
            agent_persona = persona(params, runtime)
            try:
                check_prompt(runtime.tokenizer.encode_prompt(agent_persona.text), runtime.manifest)
            except PromptTooLong as error:
                raise translate(error) from None
            self.params = params
            self.persona = agent_persona
            self.input, self.output = user.format or self.input, agent.format or self.output
        if "turn_detection" in user.model_fields_set:
            self.turn_detection = user.turn_detection

    def echo(self) -> dict[str, Any]:
        """The field `session` of the server's events: every field, with the value in effect."""
        turn_detection = self.turn_detection
        return {
            "type": "realtime",
            "object": "realtime.session",
            "id": self.id,
            "model": MODEL,
            "output_modalities": ["audio"],
            "instructions": self.persona.text,
            "audio": {
                "input": {
                    "format": self.input.model_dump(),
                    "noise_reduction": None,
                    "transcription": None,
                    "turn_detection": turn_detection.echo() if turn_detection else None,
                },
                "output": {**self.audio_output(), "speed": 1.0},
            },
            "tools": [],
            "tool_choice": "none",
            "max_output_tokens": "inf",
            "tracing": None,
            "truncation": "auto",
            "prompt": None,
            "include": None,
        }

    def audio_output(self) -> dict[str, Any]:
        """Format and voice of the agent, as responses state them."""
        return {"format": self.output.model_dump(), "voice": self.params.voice}

    def codecs(self, model_rate: int) -> tuple[DuplexCodec, DuplexCodec]:
        """Make the codecs of the user's and the agent's audio."""
        user, agent = (
            codec(each.type, SAMPLE_RATE if isinstance(each, Pcm) else g711.SAMPLE_RATE, model_rate)
            for each in (self.input, self.output)
        )
        return user, agent
