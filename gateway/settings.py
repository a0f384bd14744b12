"""The settings of the gateway, read from PERSONAPLEX_* environment variables."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from gateway.admin_address import admin_address

PREFIX = "PERSONAPLEX_"
"""Prefix of the environment variables."""

READ_ELSEWHERE = frozenset({"INTRA_OP_THREADS", "CPU_KERNELS", "PREFIX_COLUMNS", "API_KEY"})
"""Variables with that prefix that the models and the clients read."""

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]


class TlsFiles(NamedTuple):
    """PEM files: the certificate with its chain, and its private key."""

    certificate: Path
    key: Path


class Settings(BaseSettings):
    """The settings of the gateway. `PERSONAPLEX_MAX_AUDIO_SECONDS=60` sets `max_audio_seconds`; lists are JSON."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore")

    models: Path = Field(default=Path("models"), description="folder written by `personaplex build`")
    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8998, ge=0, le=65535, description="port of the REST API, WebSockets and the web page")
    grpc_port: int | None = Field(
        default=None,
        ge=-1,
        le=65535,
        description="port of the gRPC API; default: `port` + 1, or a free port if `port` is 0; -1: no gRPC API",
    )
    tls_certificate: Path | None = Field(
        default=None, description="PEM file with the certificate and its chain; enables TLS on both ports"
    )
    tls_key: Path | None = Field(default=None, description="PEM file with the private key of the certificate")
    admin_listen: str | None = Field(
        default=None,
        description="address of the operator API: path of a Unix socket, HOST:PORT, or `none`; default: a Unix socket "
        "named after `port` in the user's runtime folder",
    )
    triton_url: str = Field(default="127.0.0.1:8000", description="HTTP endpoint of Triton, HOST:PORT")

    default_voice: str = Field(
        default="NATF0", description="voice of requests that name none; the first available voice if it does not exist"
    )
    warm: list[str] = Field(
        default_factory=list,
        description="personas to prefill before the server is ready, each VOICE or VOICE:PROMPT",
    )
    allow_voice_audio: bool = Field(default=False, description="accept requests that carry a recording as the voice")

    max_connections: int = Field(
        default=1024, ge=16, description="HTTP and WebSocket connections at once; more are closed at once"
    )
    max_body_bytes: int = Field(default=64 * 2**20, ge=1, description="size limit of a request body")
    upload_budget_bytes: int = Field(
        default=128 * 2**20, ge=1, description="size limit of all request bodies in flight; more are refused with 503"
    )
    upload_seconds: float = Field(default=60.0, gt=0, description="timeout in seconds of reading a request body")
    grpc_message_bytes: int = Field(
        default=4 * 2**20,
        ge=2**16,
        description="size limit of a gRPC message; longer recordings go over REST, longer answers over RespondStream",
    )
    grpc_connection_seconds: float = Field(
        default=300.0,
        gt=0,
        le=1e6,
        description="age in seconds at which a gRPC client must connect again, so that it finds new servers; its calls "
        "in progress continue",
    )
    max_audio_seconds: float = Field(default=300.0, gt=0, description="length limit of the user's recording")
    max_voice_seconds: float = Field(default=30.0, gt=0, description="length limit of a voice recording")
    max_steps: int = Field(
        default=7500, ge=1, description="limit of `max_steps` in a request, in frames of 80 ms (7500 are ten minutes)"
    )

    step_deadline: float = Field(default=10.0, gt=0, description="timeout in seconds of a Triton request for a frame")
    prefill_deadline: float = Field(
        default=120.0, gt=0, description="timeout in seconds of the Triton requests for a prompt"
    )
    release_deadline: float = Field(
        default=60.0, gt=0, description="timeout in seconds of the Triton requests that end a conversation"
    )
    release_wait: float = Field(
        default=2.0,
        gt=0,
        description="seconds a client waits for the end of its conversation in Triton; the slot waits for "
        "`release_deadline`",
    )
    batch_interval: float = Field(
        default=0.036,
        ge=0,
        description="limit in seconds of the time between the starts of two batches while many live sessions run, in "
        "which the next batch waits for more frames. 0: no wait",
    )
    idle_seconds: float = Field(
        default=30.0, gt=0, description="seconds without user audio after which a live session ends"
    )
    max_call_seconds: float = Field(default=3600.0, gt=0, description="length limit of a live session in seconds")
    warn_seconds: float = Field(
        default=30.0, ge=0, description="seconds before `max_call_seconds` at which the client gets a warning"
    )
    handshake_seconds: float = Field(
        default=10.0, gt=0, description="seconds a live client has to send its start message"
    )
    openai_models: list[str] = Field(
        default_factory=lambda: ["gpt-live-1*", "gpt-realtime*"],
        description="further names of the model that the OpenAI APIs accept, as patterns; clients send OpenAI's names",
    )
    openai_start_seconds: float = Field(
        default=300.0,
        gt=0,
        description="seconds a client of the OpenAI APIs has to start the session, by session.start or audio",
    )
    openai_accept_tools: bool = Field(
        default=False, description="accept OpenAI Live sessions with tools, which the model never calls"
    )
    forced_speech: bool = Field(
        default=False,
        description="the agent says the text of session.commentary.append (OpenAI Live API) verbatim; otherwise that "
        "event is refused",
    )
    public_url: str | None = Field(
        default=None,
        pattern=r"^wss?://[^/?#\s]+(/[^?#\s]*)?$",
        description="address of this server as telephone services reach it, wss://HOST; their signatures cover it; "
        "default: wss:// and the Host header",
    )
    twilio_auth_tokens: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list,
        description="auth tokens of Twilio accounts: calls must be signed with one and need no API key; none: "
        "signatures are not checked and calls need an API key",
    )
    plivo_auth_tokens: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list, description="auth tokens of Plivo accounts, as `twilio_auth_tokens`"
    )
    vonage_signature_secrets: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list, description="signature secrets of Vonage accounts, as `twilio_auth_tokens`"
    )
    max_message_bytes: int = Field(default=2**20, ge=4096, description="size limit of a live client's message")
    input_frames: int = Field(
        default=10, ge=1, description="user frames of 80 ms that are queued for a live session; older ones are dropped"
    )
    output_frames: int = Field(
        default=50,
        ge=1,
        description="agent frames of 80 ms that a live client may leave unread; one more ends the session",
    )
    live_speed: float = Field(
        default=1.0, ge=0, description="speed limit of a live session as a multiple of real time; 0: no limit"
    )
    resume_seconds: float = Field(
        default=0.0,
        ge=0,
        le=600,
        description="seconds a live session whose connection is lost keeps its slot and continues with silence, for a "
        "client that can resume it; 0: sessions end with their connection",
    )
    turn_session_idle_seconds: float = Field(
        default=120.0, gt=0, description="seconds without a turn after which a session of recorded turns ends"
    )
    drain_seconds: float = Field(
        default=30.0, ge=0, description="seconds running conversations may continue when the server shuts down"
    )

    api_keys: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list, description="API keys, one of which each request must carry; none: no key is needed"
    )
    api_keys_file: Path | None = Field(
        default=None,
        description="JSON file of further API keys with names, hashes and limits (`personaplex key`); read again when "
        "it changes",
    )
    key_conversations: int = Field(
        default=0,
        ge=0,
        description="limit of concurrent conversations per API key that has none of its own; 0: no limit",
    )
    key_per_minute: int = Field(
        default=0,
        ge=0,
        description="limit of conversations begun per minute per API key that has none of its own; 0: no limit",
    )
    allowed_origins: list[str] = Field(
        default_factory=list, description="further origins whose web pages may call the APIs; * allows any"
    )

    accept_when_full: bool = Field(
        default=True,
        description="accept a live WebSocket before a slot is reserved for it. Without a free slot it is closed with "
        "1013, for clients that do not understand an HTTP refusal. If false, a slot is reserved first, or the answer "
        "is 503, so that a load balancer tries another server. /v1/realtime always reserves first",
    )
    retry_after: int = Field(
        default=5, ge=1, description="value in seconds of Retry-After when a request is refused for lack of capacity"
    )

    log_level: LogLevel = Field(
        default="warning", description="level of the log on stderr; info: lines at the start and end of conversations"
    )
    log_format: LogFormat = Field(default="text", description="format of log lines: text, or json for one object each")
    traces: bool = Field(
        default=False,
        description="send OpenTelemetry traces over OTLP, configured by the variables OTEL_*; needs the extra `otel`",
    )
    trace_frame_interval: int = Field(
        default=125,
        ge=0,
        description="one in so many frames of a live session has a span in its trace, with the time in each model; "
        "0: none",
    )

    @field_validator("admin_listen")
    @classmethod
    def _admin_listen_is_an_address(cls, value: str | None) -> str | None:
        admin_address(value, 0)
        return value

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Settings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("expected both tls_certificate and tls_key, or neither")
        return self

    @classmethod
    def unknown(cls, environment: Iterable[str]) -> list[str]:
        """Return the names in `environment` that have the project's prefix and are not settings."""
        known = {name.upper() for name in cls.model_fields} | READ_ELSEWHERE
        ours = (name for name in environment if name.startswith(PREFIX))
        return sorted(name for name in ours if name.removeprefix(PREFIX) not in known)

    @property
    def tls(self) -> TlsFiles | None:
        """TLS files of both ports; None for plain text."""
        if self.tls_certificate is None or self.tls_key is None:
            return None
        return TlsFiles(self.tls_certificate, self.tls_key)

    @property
    def grpc_listen_port(self) -> int | None:
        """Port of the gRPC API, 0 for a free one; None if it is disabled."""
        if self.grpc_port is None:
            return self.port + 1 if 0 < self.port < 65535 else 0
        return None if self.grpc_port < 0 else self.grpc_port
