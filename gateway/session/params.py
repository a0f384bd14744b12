"""Parameters of requests, validated: the same models for all APIs."""

from __future__ import annotations

import io
from binascii import a2b_base64
from typing import Annotated, BinaryIO, Literal, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
)

from gateway.errors import FieldError, InvalidFields, InvalidRequest, MalformedBody
from gateway.session.limits import OnGap

SEED_BITS = 63
MAX_TEMPERATURE = 2.0
MAX_TOP_K = 1_000_000
MAX_PROMPT_CHARACTERS = 20_000

# Fields that an error lists; a body of 320 KiB can hold 40,000 unknown fields.
_MAX_FIELD_ERRORS = 64


def _audio_file(value: object, info: ValidationInfo) -> BinaryIO:
    """Return an open file: `value` itself, or a file of its bytes or base64 text.

    A JSON body has a token in place of the text. The validation context maps the token to the decoded file, or to None
    if the text is not base64. Raises ValueError for anything else and for an empty file.
    """
    if isinstance(value, str):
        files = info.context or {}
        try:
            value = files[value] if value in files else a2b_base64(value.encode("ascii"), strict_mode=True)
        except ValueError:
            value = None
        if value is None:
            raise ValueError("expected base64")
    if isinstance(value, bytes):
        value = io.BytesIO(value)
    if not hasattr(value, "seek"):
        raise ValueError("expected audio")
    file = cast(BinaryIO, value)
    if file.seek(0, io.SEEK_END) == 0:
        raise ValueError("expected some bytes, got none")
    file.seek(0)
    return file


Audio = Annotated[
    BinaryIO,
    PlainValidator(_audio_file),
    WithJsonSchema({"type": "string", "format": "byte", "contentEncoding": "base64", "minLength": 1}),
]
Temperature = Annotated[float, Field(ge=0, le=MAX_TEMPERATURE, allow_inf_nan=False)]
TopK = Annotated[int, Field(ge=0, le=MAX_TOP_K)]


class PersonaParams(BaseModel):
    """Persona and sampling, common to recorded and live requests. Null or absent means the default."""

    model_config = ConfigDict(extra="forbid")

    voice: str | None = Field(None, max_length=200, description="name of a preset voice; see GET /v1/voices")
    system_prompt: str | None = Field(
        None, max_length=200, description="name of a preset prompt; see GET /v1/system-prompts"
    )
    text_prompt: str | None = Field(
        None,
        max_length=MAX_PROMPT_CHARACTERS,
        description="description of the agent in free text; empty means none; not together with `system_prompt`",
    )
    audio_temperature: Temperature | None = Field(None, description="0 is greedy")
    audio_top_k: TopK | None = Field(None, description="0 is the whole vocabulary")
    text_temperature: Temperature | None = Field(None, description="0 is greedy")
    text_top_k: TopK | None = Field(None, description="0 is the whole vocabulary")
    greedy: bool | None = Field(None, description="always choose the most likely token; overrides the temperatures")
    seed: int | None = Field(
        None, ge=0, lt=2**SEED_BITS, description="the same seed and request give the same response; random by default"
    )


class RespondRequest(PersonaParams):
    """A recording, with the parameters of the response. Null or absent means the default."""

    audio: Audio = Field(description="the user's recording: any file libsndfile reads, 8 to 192 kHz; channel 0 is used")
    voice_audio: Audio | None = Field(
        None, description="a recording of the voice to use, at least 0.4 s; not together with `voice`"
    )
    max_steps: int | None = Field(
        None,
        ge=1,
        description=(
            "exact number of frames of 80 ms to generate; by default the recording's frames + 250, or fewer: the "
            "response ends when the agent has been silent for 2 s after the recording's end (text "
            "padding, and below -50 dB of full scale)"
        ),
    )
    stream: bool | None = Field(None, description="send the WAV while it is generated; not for JSON responses")
    keep: bool | None = Field(
        None,
        description="keep the conversation for further turns: the response states its `conversation_id`; it holds a "
        "slot until it is deleted or its idle time is over. With `conversation_id`, false ends it after this turn",
    )
    conversation_id: str | None = Field(
        None,
        max_length=64,
        description="continue this conversation, with the voice, prompt, sampling and seed of its first turn",
    )
    include: list[Literal["tokens"]] | None = Field(
        None, max_length=8, description="`tokens` adds text_tokens, agent_codes and user_codes to a JSON response"
    )

    def close(self) -> None:
        """Release the audio files."""
        for file in (self.audio, self.voice_audio):
            if file is not None:
                file.close()


class LiveParams(PersonaParams):
    """Parameters of a live session."""

    on_gap: OnGap | None = Field(
        None, description="when no audio arrives: `wait` for it (default), or continue with `silence` in real time"
    )


def invalid_params(error: ValidationError) -> InvalidRequest | MalformedBody:
    """Translate a validation error of these models."""
    if error.error_count() > _MAX_FIELD_ERRORS:
        return InvalidRequest(f"{error.error_count()} fields are invalid")
    found = error.errors(include_url=False, include_context=False, include_input=False)
    if any(item["type"] == "json_invalid" for item in found):
        return MalformedBody(f"expected application/json: {found[0]['msg'].removeprefix('Invalid JSON: ')}")
    return InvalidFields(
        FieldError(field=".".join(str(part) for part in item["loc"]), message=item["msg"].removeprefix("Value error, "))
        for item in found
    )
