"""Bodies of the REST API's responses, as JSON."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from gateway.voices.registry import Origin


class StageTimings(BaseModel):
    """Milliseconds of one stage, over all frames but the first."""

    median_ms: float
    p99_ms: float


class Stages(BaseModel):
    """The four stages of a frame."""

    encode: StageTimings
    temporal: StageTimings
    depformer: StageTimings
    decode: StageTimings


class Timings(BaseModel):
    """Durations of a response."""

    setup_ms: float = Field(description="from the allocation of the slot until the models hold the prompt")
    time_to_first_audio_ms: float = Field(
        description="from the allocation of the slot to the first frame that is not the forced silence"
    )
    stages: Stages
    rtf: float = Field(description="processing seconds per second of generated audio; below 1 is faster than real time")


class RespondAnswer(BaseModel):
    """The response of `POST /v1/respond`, as JSON."""

    audio: str = Field(
        description="a WAV file, mono PCM16", json_schema_extra={"format": "byte", "contentEncoding": "base64"}
    )
    transcript: str = Field(description="text of the agent's text stream")
    frames: int = Field(ge=1, description="frames of 80 ms in `audio`; the first is always silence")
    sample_rate: int
    voice: str = Field(description="the preset's name, or `voice_audio`")
    seed: int
    timings: Timings
    conversation_id: str | None = Field(None, description="with `keep`: id for the next turn")
    text_tokens: list[int] | None = Field(None, description="[frames]; with `include` only")
    agent_codes: list[list[int]] | None = Field(None, description="[frames][8]; with `include` only")
    user_codes: list[list[int]] | None = Field(None, description="[frames][8]; with `include` only")


class Voice(BaseModel):
    """A preset voice."""

    name: str
    seconds: float = Field(description="duration of the prompt audio that the model gets")
    origin: Origin = Field(description="`built-in`: part of the checkpoint; `added`: added by the operator")


class Voices(BaseModel):
    """The preset voices of the served models."""

    default: str
    voices: list[Voice]
    voice_audio: bool = Field(description="whether requests may send `voice_audio`")


class SystemPrompt(BaseModel):
    """A preset prompt."""

    name: str
    text: str


class SystemPrompts(BaseModel):
    """The preset prompts."""

    default: str
    system_prompts: list[SystemPrompt]


class Health(BaseModel):
    """State of the server."""

    status: Literal["ok", "ready"]
