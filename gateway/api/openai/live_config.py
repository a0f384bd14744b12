"""Configuration of a Live session: what the client asks for, and what this server makes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gateway.api.openai.config import MODEL, CustomVoice, check_model, codec, live_params, resolve_voice, validate
from gateway.api.openai.errors import FORBIDDEN, OpenAIError
from gateway.audio.duplex import DuplexCodec
from gateway.session.params import LiveParams
from gateway.session.runtime import Runtime

_MAX_ITEMS = 128


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Pcm(_Strict):
    """16-bit little-endian samples, mono."""

    type: Literal["audio/pcm"] = "audio/pcm"
    rate: Literal[24_000, 16_000] = 24_000


class G711(_Strict):
    """G.711 μ-law or A-law."""

    type: Literal["audio/pcmu", "audio/pcma"]
    rate: Literal[8_000] = 8_000


class AudioOutput(_Strict):
    """The agent's voice."""

    voice: str | CustomVoice | None = None


class Audio(_Strict):
    """Format of both directions, and the voice."""

    format: Annotated[Pcm | G711, Field(discriminator="type")] | None = None
    output: AudioOutput | None = None


class ClientDelegation(_Strict):
    """The client carries out tasks. This server never delegates one."""

    type: Literal["client"]
    acknowledgement_delay_ms: int | None = Field(default=None, ge=0)


class Responses(BaseModel):
    """A Responses backend. It is echoed and not used."""

    model_config = ConfigDict(extra="allow")

    model: str
    tools: list[Any] | None = None


class ResponsesDelegation(_Strict):
    """A Responses model carries out tasks: LiveKit's default."""

    type: Literal["responses"]
    responses: Responses
    acknowledgement_delay_ms: int | None = Field(default=None, ge=0)


class DecisionsDelegation(BaseModel):
    """Decisions: refused."""

    type: Literal["decisions"]


class TextPart(BaseModel):
    """The text of a message of the history."""

    text: str


class InputItem(BaseModel):
    """A message of the history."""

    role: Literal["developer", "user", "assistant"]
    content: list[TextPart] = Field(min_length=1, max_length=1)


class SessionConfig(_Strict):
    """The field `session` of `session.start`."""

    model: str
    instructions: str | None = None
    audio: Audio | None = None
    delegation: (
        Annotated[ClientDelegation | ResponsesDelegation | DecisionsDelegation, Field(discriminator="type")] | None
    ) = None
    input: list[InputItem] | None = Field(default=None, max_length=_MAX_ITEMS)
    store: bool | None = None
    safety_identifier: str | None = None
    triggers: list[Any] | None = None
    client: Any | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """What the server does differently from what the client asked for."""

    code: str
    message: str


@dataclass(slots=True)
class LiveConfig:
    """A configuration as resolved. `echo`: what `session.started` states of it."""

    params: LiveParams
    format: Pcm | G711
    echo: dict[str, Any]
    notices: list[Notice] = field(default_factory=list)

    def codec(self, model_rate: int) -> DuplexCodec:
        """Make the codec of the session."""
        return codec(self.format.type, self.format.rate, model_rate)


def resolve(session: object, runtime: Runtime) -> LiveConfig:
    """Check a configuration and fill in defaults. Raises OpenAIError, which ends the connection."""
    config = validate(SessionConfig, session)
    check_model(config.model, runtime, "session.model")
    _refuse_unsupported(config, accept_tools=runtime.settings.openai_accept_tools)
    audio = config.audio or Audio()
    asked = audio.output.voice if audio.output else None
    voice = resolve_voice(asked, runtime)
    params = live_params(voice, config.instructions or "")
    notices: list[Notice] = []
    # Only one of OpenAI's voices is resolved to another name.
    if isinstance(asked, str) and asked != voice:
        notices.append(Notice("voice_substituted", f"this server has no voice {asked}; the session uses {voice}"))
    if isinstance(config.delegation, ResponsesDelegation):
        notices.append(Notice("delegation_unavailable", "this server delegates no tasks"))
    if config.input:
        notices.append(Notice("history_ignored", "the model begins without the messages of session.input"))
    audio_format = audio.format or Pcm()
    delegation = config.delegation or ClientDelegation(type="client")
    echo: dict[str, Any] = {
        "model": MODEL,
        "audio": {"format": audio_format.model_dump(), "output": {"voice": voice}},
        "delegation": delegation.model_dump(exclude_none=True),
        "input": [],
        "store": False,
        "triggers": [],
    }
    if config.safety_identifier is not None:
        echo["safety_identifier"] = config.safety_identifier
    return LiveConfig(params, audio_format, echo, notices)


def _refuse_unsupported(config: SessionConfig, *, accept_tools: bool) -> None:
    delegation = config.delegation
    if isinstance(delegation, ResponsesDelegation) and delegation.responses.tools and not accept_tools:
        refused, param = "tools, because it delegates no tasks", "session.delegation.responses.tools"
    elif isinstance(delegation, DecisionsDelegation):
        refused, param = "Decisions", "session.delegation"
    elif config.triggers:
        refused, param = "triggers", "session.triggers"
    elif config.store:
        refused, param = "stored sessions", "session.store"
    elif config.client is not None:
        refused, param = "WebRTC clients", "session.client"
    else:
        return
    raise OpenAIError("unsupported_value", f"this server has no {refused}", param, kind=FORBIDDEN)
