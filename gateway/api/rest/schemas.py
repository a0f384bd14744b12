"""What the faces take and `POST /v1/respond` gives: one model for all kinds of body, and the answer's."""

from __future__ import annotations

import io
from binascii import a2b_base64
from typing import Annotated, BinaryIO, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationInfo, WithJsonSchema

from gateway.session.limits import OnGap
from gateway.voices.registry import Origin

SEED_BITS = 63
MAX_TEMPERATURE = 2.0
MAX_TOP_K = 1_000_000
MAX_PROMPT_CHARACTERS = 20_000


def _audio_file(value: object, info: ValidationInfo) -> BinaryIO:
    """An open file, from the file or bytes of a form or gRPC message, or from base64 text.

    JSON bodies have a token in place of the text; the validation context holds the decoded file, or None if the text
    is not base64.
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
    """Who shall answer, and how: what a recording and a live call have in common. Null or absent is the default."""

    model_config = ConfigDict(extra="forbid")

    voice: str | None = Field(None, max_length=200, description="name of a preset voice; see GET /v1/voices")
    system_prompt: str | None = Field(
        None, max_length=200, description="name of a preset prompt; see GET /v1/system-prompts"
    )
    text_prompt: str | None = Field(
        None,
        max_length=MAX_PROMPT_CHARACTERS,
        description="who the agent is, in free text; empty for no text at all; not together with `system_prompt`",
    )
    audio_temperature: Temperature | None = Field(None, description="0 is greedy")
    audio_top_k: TopK | None = Field(None, description="0 is the whole vocabulary")
    text_temperature: Temperature | None = Field(None, description="0 is greedy")
    text_top_k: TopK | None = Field(None, description="0 is the whole vocabulary")
    greedy: bool | None = Field(None, description="always the most likely token, whatever the temperatures say")
    seed: int | None = Field(
        None, ge=0, lt=2**SEED_BITS, description="the same seed and request give the same answer; random by default"
    )


class RespondRequest(PersonaParams):
    """A recording, who shall answer it, and how. A value that is null or absent takes its default."""

    audio: Audio = Field(description="the user's recording: any file libsndfile reads, 8 to 192 kHz; channel 0 is used")
    voice_audio: Audio | None = Field(
        None, description="a recording to take the voice from, at least 0.4 s; not together with `voice`"
    )
    max_steps: int | None = Field(
        None,
        ge=1,
        description=(
            "frames of 80 ms to generate, exactly; by default the recording's frames + 250, or fewer: it ends when the "
            "agent has been silent for 2 s after the recording's end (text padding, and below -50 dB of full scale)"
        ),
    )
    stream: bool | None = Field(None, description="send the WAV in pieces as it is made; not for JSON answers")
    keep: bool | None = Field(
        None,
        description="keep the conversation for further turns: the answer names its `conversation_id`; it holds a slot "
        "until it is deleted or no turn has come for a while. With `conversation_id`, false ends it after this turn",
    )
    conversation_id: str | None = Field(
        None,
        max_length=64,
        description="go on in this kept conversation; its voice, prompt, sampling and seed are what they were",
    )
    include: list[Literal["tokens"]] | None = Field(
        None, max_length=8, description="`tokens` adds text_tokens, agent_codes and user_codes to a JSON answer"
    )

    def close(self) -> None:
        """Release the audio files."""
        for file in (self.audio, self.voice_audio):
            if file is not None:
                file.close()


class LiveParams(PersonaParams):
    """Who shall be on the line of a live call, and how."""

    on_gap: OnGap | None = Field(
        None, description="when audio stops coming: `wait` for more (default), or go on with `silence` in real time"
    )


class StageTimings(BaseModel):
    """Milliseconds one stage took, over all frames but the first."""

    median_ms: float
    p99_ms: float


class Stages(BaseModel):
    """The four engine calls of a frame."""

    encode: StageTimings
    temporal: StageTimings
    depformer: StageTimings
    decode: StageTimings


class Timings(BaseModel):
    """How long things took."""

    setup_ms: float = Field(description="from the slot being taken to the prompt being in the models")
    time_to_first_audio_ms: float = Field(
        description="from the slot being taken to the first frame that is not the forced silence"
    )
    stages: Stages
    rtf: float = Field(description="seconds spent on frames per second of audio made; below 1 is faster than real time")


class RespondAnswer(BaseModel):
    """The agent's answer, as JSON."""

    audio: str = Field(
        description="a WAV file, mono PCM16", json_schema_extra={"format": "byte", "contentEncoding": "base64"}
    )
    transcript: str = Field(description="what the agent says, as far as its text stream has it")
    frames: int = Field(ge=1, description="frames of 80 ms in `audio`; the first is always silence")
    sample_rate: int
    voice: str = Field(description="the preset's name, or `voice_audio`")
    seed: int
    timings: Timings
    conversation_id: str | None = Field(None, description="with `keep`: where the next turn goes on")
    text_tokens: list[int] | None = Field(None, description="[frames]; with `include` only")
    agent_codes: list[list[int]] | None = Field(None, description="[frames][8]; with `include` only")
    user_codes: list[list[int]] | None = Field(None, description="[frames][8]; with `include` only")


class Voice(BaseModel):
    """A preset voice."""

    name: str
    seconds: float = Field(description="how much of it the model is shown")
    origin: Origin = Field(description="`built-in`: came with the checkpoint; `added`: put there by the operator")


class Voices(BaseModel):
    """The preset voices of this repository."""

    default: str
    voices: list[Voice]
    voice_audio: bool = Field(description="whether a recording may be sent instead")


class SystemPrompt(BaseModel):
    """A preset prompt."""

    name: str
    text: str


class SystemPrompts(BaseModel):
    """The preset prompts."""

    default: str
    system_prompts: list[SystemPrompt]


class Health(BaseModel):
    """A sign of life."""

    status: Literal["ok", "ready"]
