"""What the configurations of both OpenAI APIs have in common: validation, names of models, voices, instructions."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.api.openai.errors import OpenAIError
from gateway.audio.duplex import DuplexCodec, Encoding
from gateway.errors import UnknownVoice
from gateway.session.limits import LiveLimits
from gateway.session.params import MAX_PROMPT_CHARACTERS, LiveParams
from gateway.session.runtime import Runtime

MODEL = "personaplex"
"""Name of the model in what the server sends."""

BUILT_IN_VOICES = frozenset((
    "alloy", "ash", "ballad", "beacon", "bossa", "cedar", "cinder", "coral", "delta", "echo", "gleam", "marin",
    "meridian", "quartz", "ripple", "sage", "shida", "shimmer", "stone", "tempo", "verse", "vesper", "willow",
))  # fmt: skip
"""OpenAI's voices. Clients send one unless another is configured; LiveKit always sends `marin`."""

MAX_CONFIG_CHARACTERS = 2**18
"""Size limit of an event with a configuration, so that its echo is well below the 1 MiB that clients read."""

# Frames that may be sent ahead of their time, which delays the user's interruptions, because clients play what they
# receive. Two, because clients send pieces of 100 ms.
_LEAD_FRAMES = 2
_ENCODINGS: dict[str, Encoding] = {"audio/pcm": "pcm_s16le", "audio/pcmu": "ulaw", "audio/pcma": "alaw"}
# Code of each kind of validation error; others are `invalid_value`.
_CODES = {
    "extra_forbidden": "unknown_parameter",
    "missing": "missing_required_parameter",
    "literal_error": "unsupported_value",
    "union_tag_invalid": "unsupported_value",
}

Model = TypeVar("Model", bound=BaseModel)


class CustomVoice(BaseModel):
    """A voice by its id, which is its name."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(min_length=1, max_length=128)


def check_size(characters: int) -> None:
    """Raise OpenAIError if the event with a configuration is too large."""
    if characters > MAX_CONFIG_CHARACTERS:
        raise OpenAIError("invalid_value", f"expected at most {MAX_CONFIG_CHARACTERS} characters", "session")


def validate(model: type[Model], value: object, name: str = "session") -> Model:
    """Check the field `name` of an event, or, if that is empty, all of its fields.

    Raises OpenAIError for the first part that is not valid.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        code = _CODES.get(first["type"], "invalid_value")
        param = ".".join(filter(None, [name, *_path(first["loc"], value, missing=first["type"] == "missing")]))
        raise OpenAIError(code, f"{param}: {first['msg']}", param) from None


def check_model(name: str, runtime: Runtime, param: str) -> None:
    """Raise OpenAIError if this server does not answer to the name of a model."""
    if not any(fnmatchcase(name, pattern) for pattern in (MODEL, *runtime.settings.openai_models)):
        raise OpenAIError("model_not_found", f"no model named {name[:100]!r}; there is: {MODEL}", param)


def resolve_voice(asked: str | CustomVoice | None, runtime: Runtime) -> str:
    """Return the name of the voice to use: a preset, in place of one of OpenAI's voices the default.

    Raises OpenAIError if there is no such voice.
    """
    name = asked.id if isinstance(asked, CustomVoice) else asked
    if name is None or (name in BUILT_IN_VOICES and name not in runtime.voices.available()):
        return runtime.default_voice
    try:
        return runtime.voices.require(name).name
    except UnknownVoice as error:
        raise OpenAIError("invalid_value", error.message, "session.audio.output.voice") from None


def live_params(voice: str, instructions: str) -> LiveParams:
    """Make the parameters of a session. Blank instructions mean the default prompt. Raises OpenAIError if too long."""
    if len(instructions) > MAX_PROMPT_CHARACTERS:
        raise OpenAIError(
            "instructions_too_long", f"expected at most {MAX_PROMPT_CHARACTERS} characters", "session.instructions"
        )
    return LiveParams.model_validate({"voice": voice, "text_prompt": instructions if instructions.strip() else None})


def live_limits(runtime: Runtime) -> LiveLimits:
    """Make the limits of a session."""
    return replace(LiveLimits.of(runtime.settings), lead_frames=_LEAD_FRAMES, early_frames=_LEAD_FRAMES)


def codec(media_type: str, sample_rate: int, model_rate: int) -> DuplexCodec:
    """Make a codec of `audio/pcm`, `audio/pcmu` or `audio/pcma`."""
    return DuplexCodec(_ENCODINGS[media_type], sample_rate, model_rate)


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
