"""The gateway's configuration: typed, in one place, read from PERSONAPLEX_* environment variables."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Every knob of the gateway; `PERSONAPLEX_MAX_AUDIO_SECONDS=60` sets `max_audio_seconds`."""

    model_config = SettingsConfigDict(env_prefix="PERSONAPLEX_", extra="ignore")

    models: Path = Field(default=Path("models"), description="folder written by `personaplex build`")
    host: str = Field(default="127.0.0.1", description="address the gateway listens on")
    port: int = Field(default=8998, ge=0, le=65535, description="port the gateway listens on")
    triton_url: str = Field(default="127.0.0.1:8001", description="Triton's gRPC endpoint, HOST:PORT")

    default_voice: str = Field(
        default="NATF0", description="voice when a request names none; the first one if it is not there"
    )
    allow_voice_audio: bool = Field(default=False, description="let callers send a recording to take the voice from")

    max_body_bytes: int = Field(default=64 * 2**20, ge=1, description="largest request body")
    max_audio_seconds: float = Field(default=300.0, gt=0, description="longest user recording")
    max_voice_seconds: float = Field(default=30.0, gt=0, description="longest recording to take a voice from")
    max_steps: int = Field(default=7500, ge=1, description="most frames one request may ask for (7500 are ten minutes)")

    step_deadline: float = Field(default=10.0, gt=0, description="seconds one Triton call of a frame may take")
    prefill_deadline: float = Field(default=120.0, gt=0, description="seconds the prompt's Triton call may take")
    release_deadline: float = Field(
        default=60.0, gt=0, description="seconds Triton may take to release a conversation's rows"
    )
    release_patience: float = Field(
        default=2.0, gt=0, description="seconds a caller waits for that; the slot waits longer"
    )
    cohort_window: float = Field(
        default=0.0, ge=0, description="seconds a frame waits for other conversations to join it"
    )
    cohort_patience: float = Field(
        default=2.0, gt=0, description="seconds after which a stuck shared frame is not waited for"
    )
    retry_after: int = Field(default=5, ge=1, description="seconds told to a caller who is refused for lack of a slot")
