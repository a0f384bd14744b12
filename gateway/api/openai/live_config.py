"""Configuration of a Live session: what the client asks for, and what this server makes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.api.openai.errors import FORBIDDEN, INVALID_REQUEST, OpenAIError
from gateway.audio.duplex import DuplexCodec, Encoding
from gateway.errors import UnknownVoice
from gateway.session.params import MAX_PROMPT_CHARACTERS, LiveParams
from gateway.session.runtime import Runtime

MODEL = "personaplex"
"""Name of the model in `session.started`."""

BUILT_IN_VOICES = frozenset((
    "alloy", "ash", "ballad", "beacon", "bossa", "cedar", "cinder", "coral", "delta", "echo", "gleam", "marin",
    "meridian", "quartz", "ripple", "sage", "shida", "shimmer", "stone", "tempo", "verse", "vesper", "willow",
))  # fmt: skip
"""OpenAI's voices. Clients send one unless another is configured; LiveKit always sends `marin`."""

_ENCODINGS: dict[str, Encoding] = {"audio/pcm": "pcm_s16le", "audio/pcmu": "ulaw", "audio/pcma": "alaw"}
_MAX_ITEMS = 128
# Code of each kind of validation error; others are `invalid_value`.
_CODES = {
    "extra_forbidden": "unknown_parameter",
    "missing": "missing_required_parameter",
    "literal_error": "unsupported_value",
    "union_tag_invalid": "unsupported_value",
}


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


class CustomVoice(_Strict):
    """A voice by its id, which is its name."""

    id: str = Field(min_length=1, max_length=128)


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
        return DuplexCodec(_ENCODINGS[self.format.type], self.format.rate, model_rate)


def resolve(session: object, runtime: Runtime) -> LiveConfig:
    """Check a configuration and fill in defaults. Raises OpenAIError, which ends the connection."""
    config = _validate(session)
    settings = runtime.settings
    if not any(fnmatchcase(config.model, name) for name in (MODEL, *settings.openai_models)):
        raise OpenAIError(
            "model_not_found", f"no model named {config.model[:100]!r}; there is: {MODEL}", "session.model"
        )
    _refuse_unsupported(config, accept_tools=settings.openai_accept_tools)
    instructions = config.instructions or ""
    if len(instructions) > MAX_PROMPT_CHARACTERS:
        raise OpenAIError(
            "instructions_too_long", f"expected at most {MAX_PROMPT_CHARACTERS} characters", "session.instructions"
        )
    audio = config.audio or Audio()
    notices: list[Notice] = []
    voice = _voice(audio.output, runtime, notices)
    params = LiveParams.model_validate({"voice": voice, "text_prompt": instructions if instructions.strip() else None})
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


def _validate(session: object) -> SessionConfig:
    try:
        return SessionConfig.model_validate(session)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        code = _CODES.get(first["type"], "invalid_value")
        param = ".".join(["session", *_path(first["loc"], session, missing=first["type"] == "missing")])
        raise OpenAIError(code, f"{param}: {first['msg']}", param) from None


def _path(location: tuple[int | str, ...], value: object, *, missing: bool) -> list[str]:
    """Return the fields of a location, without the names of union members that pydantic inserts."""
    path: list[str] = []
    for part in location:
        if (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int)):
            path.append(str(part))
            value = value[part]  # type: ignore[index]
    if missing:
        path.append(str(location[-1]))
    return path


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


def _voice(output: AudioOutput | None, runtime: Runtime, notices: list[Notice]) -> str:
    """Return the name of the voice to use: a preset, in place of one of OpenAI's voices the default."""
    asked = None if output is None else output.voice
    name = asked.id if isinstance(asked, CustomVoice) else asked
    if name is None:
        return runtime.default_voice
    if name in BUILT_IN_VOICES and name not in runtime.voices.available():
        voice = runtime.default_voice
        notices.append(Notice("voice_substituted", f"this server has no voice {name}; the session uses {voice}"))
        return voice
    try:
        return runtime.voices.require(name).name
    except UnknownVoice as error:
        raise OpenAIError("invalid_value", error.message, "session.audio.output.voice", kind=INVALID_REQUEST) from None
