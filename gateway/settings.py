"""The gateway's configuration: typed, in one place, read from PERSONAPLEX_* environment variables."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from gateway.admin_address import admin_address

PREFIX = "PERSONAPLEX_"
"""Of the environment variables."""

OF_MODELS_AND_CALLERS = frozenset({"INTRA_OP_THREADS", "CPU_KERNELS", "PREFIX_COLUMNS", "API_KEY"})
"""Variables with that prefix that are read elsewhere."""


class TlsFiles(NamedTuple):
    """PEM files: the certificate with its chain, and its private key."""

    certificate: Path
    key: Path


class Settings(BaseSettings):
    """Every knob of the gateway; `PERSONAPLEX_MAX_AUDIO_SECONDS=60` sets `max_audio_seconds`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore")

    models: Path = Field(default=Path("models"), description="folder written by `personaplex build`")
    host: str = Field(default="127.0.0.1", description="address the gateway listens on")
    port: int = Field(default=8998, ge=0, le=65535, description="port the gateway listens on")
    grpc_port: int | None = Field(
        default=None,
        ge=-1,
        le=65535,
        description="port of the gRPC face; by default the one after `port`, or a free one if that is 0; -1 for none",
    )
    tls_certificate: Path | None = Field(
        default=None, description="PEM file with the certificate and its chain: TLS on both ports"
    )
    tls_key: Path | None = Field(default=None, description="PEM file with the certificate's private key")
    admin_listen: str | None = Field(
        default=None,
        description="where the operator API listens, apart from the public ports: a Unix socket's path, HOST:PORT, or "
        "`none`; by default a Unix socket named after `port` in the user's runtime folder",
    )
    triton_url: str = Field(default="127.0.0.1:8000", description="Triton's HTTP endpoint, HOST:PORT")

    default_voice: str = Field(
        default="NATF0", description="voice when a request names none; the first one if it is not there"
    )
    warm: list[str] = Field(
        default_factory=list, description="personas to prefill before the server is ready, each VOICE or VOICE:PROMPT"
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
    batch_window: float = Field(
        default=0.006,
        ge=0,
        description="seconds a frame waits for others to join it while many conversations go on, some of them live",
    )
    cohort_patience: float = Field(
        default=2.0, gt=0, description="seconds after which a stuck shared frame is not waited for"
    )
    idle_seconds: float = Field(default=30.0, gt=0, description="seconds a live call may go without the caller's audio")
    max_call_seconds: float = Field(default=3600.0, gt=0, description="longest live call")
    warn_seconds: float = Field(default=30.0, ge=0, description="seconds before that at which the caller is warned")
    handshake_seconds: float = Field(
        default=10.0, gt=0, description="seconds a live caller may take to say what they want"
    )
    max_message_bytes: int = Field(default=2**20, ge=4096, description="largest message of a live caller")
    input_frames: int = Field(default=10, ge=1, description="frames of a live caller's audio that may wait")
    output_frames: int = Field(
        default=50, ge=1, description="frames of the agent's audio a live caller may leave unread"
    )
    live_speed: float = Field(
        default=1.0, ge=0, description="multiple of real time at which a live call may run; 0: as fast as it can"
    )
    kept_idle_seconds: float = Field(default=120.0, gt=0, description="seconds a kept conversation waits for a turn")
    drain_seconds: float = Field(
        default=30.0, ge=0, description="seconds live calls may go on once the server is told to stop"
    )

    api_keys: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list, description="keys of which a caller must show one; none: everybody may call"
    )
    key_conversations: int = Field(default=0, ge=0, description="conversations one key may hold at once; 0: no limit")
    allowed_origins: list[str] = Field(
        default_factory=list, description="origins besides our own whose pages may call from a browser; * for any"
    )

    retry_after: int = Field(default=5, ge=1, description="seconds told to a caller who is refused for lack of a slot")

    @field_validator("admin_listen")
    @classmethod
    def _admin_listen_is_an_address(cls, value: str | None) -> str | None:
        admin_address(value, 0)
        return value

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Settings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together: expected both or none")
        return self

    @classmethod
    def unknown(cls, environment: Iterable[str]) -> list[str]:
        """Names of variables that are meant for this project, and that nothing reads."""
        known = {name.upper() for name in cls.model_fields} | OF_MODELS_AND_CALLERS
        ours = (name for name in environment if name.startswith(PREFIX))
        return sorted(name for name in ours if name.removeprefix(PREFIX) not in known)

    @property
    def tls(self) -> TlsFiles | None:
        """What both ports are encrypted with; None for plain text."""
        if self.tls_certificate is None or self.tls_key is None:
            return None
        return TlsFiles(self.tls_certificate, self.tls_key)

    @property
    def grpc_listens_on(self) -> int | None:
        """The gRPC face's port, 0 for a free one; None where it is switched off."""
        if self.grpc_port is None:
            return self.port + 1 if 0 < self.port < 65535 else 0
        return None if self.grpc_port < 0 else self.grpc_port
