# ruff: noqa
# fmt: off
# mypy: ignore-errors
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AudioFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AUDIO_FORMAT_UNSPECIFIED: _ClassVar[AudioFormat]
    AUDIO_FORMAT_PCM_S16LE: _ClassVar[AudioFormat]
    AUDIO_FORMAT_PCM_F32LE: _ClassVar[AudioFormat]
    AUDIO_FORMAT_OPUS: _ClassVar[AudioFormat]

class OnGap(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ON_GAP_UNSPECIFIED: _ClassVar[OnGap]
    ON_GAP_WAIT: _ClassVar[OnGap]
    ON_GAP_SILENCE: _ClassVar[OnGap]

class EndReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    END_REASON_UNSPECIFIED: _ClassVar[EndReason]
    END_REASON_COMPLETED: _ClassVar[EndReason]
    END_REASON_DISCONNECTED: _ClassVar[EndReason]
    END_REASON_IDLE: _ClassVar[EndReason]
    END_REASON_MAX_DURATION: _ClassVar[EndReason]
    END_REASON_SLOW_CLIENT: _ClassVar[EndReason]
    END_REASON_DRAINED: _ClassVar[EndReason]
    END_REASON_ENGINE: _ClassVar[EndReason]
    END_REASON_ERROR: _ClassVar[EndReason]
    END_REASON_CLIENT_ERROR: _ClassVar[EndReason]
AUDIO_FORMAT_UNSPECIFIED: AudioFormat
AUDIO_FORMAT_PCM_S16LE: AudioFormat
AUDIO_FORMAT_PCM_F32LE: AudioFormat
AUDIO_FORMAT_OPUS: AudioFormat
ON_GAP_UNSPECIFIED: OnGap
ON_GAP_WAIT: OnGap
ON_GAP_SILENCE: OnGap
END_REASON_UNSPECIFIED: EndReason
END_REASON_COMPLETED: EndReason
END_REASON_DISCONNECTED: EndReason
END_REASON_IDLE: EndReason
END_REASON_MAX_DURATION: EndReason
END_REASON_SLOW_CLIENT: EndReason
END_REASON_DRAINED: EndReason
END_REASON_ENGINE: EndReason
END_REASON_ERROR: EndReason
END_REASON_CLIENT_ERROR: EndReason

class Sampling(_message.Message):
    __slots__ = ("audio_temperature", "audio_top_k", "text_temperature", "text_top_k", "greedy", "seed")
    AUDIO_TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    AUDIO_TOP_K_FIELD_NUMBER: _ClassVar[int]
    TEXT_TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TEXT_TOP_K_FIELD_NUMBER: _ClassVar[int]
    GREEDY_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    audio_temperature: float
    audio_top_k: int
    text_temperature: float
    text_top_k: int
    greedy: bool
    seed: int
    def __init__(self, audio_temperature: _Optional[float] = ..., audio_top_k: _Optional[int] = ..., text_temperature: _Optional[float] = ..., text_top_k: _Optional[int] = ..., greedy: _Optional[bool] = ..., seed: _Optional[int] = ...) -> None: ...

class RespondRequest(_message.Message):
    __slots__ = ("audio", "voice", "voice_audio", "system_prompt", "text_prompt", "sampling", "max_steps", "include_tokens")
    AUDIO_FIELD_NUMBER: _ClassVar[int]
    VOICE_FIELD_NUMBER: _ClassVar[int]
    VOICE_AUDIO_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_PROMPT_FIELD_NUMBER: _ClassVar[int]
    TEXT_PROMPT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    audio: bytes
    voice: str
    voice_audio: bytes
    system_prompt: str
    text_prompt: str
    sampling: Sampling
    max_steps: int
    include_tokens: bool
    def __init__(self, audio: _Optional[bytes] = ..., voice: _Optional[str] = ..., voice_audio: _Optional[bytes] = ..., system_prompt: _Optional[str] = ..., text_prompt: _Optional[str] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., max_steps: _Optional[int] = ..., include_tokens: _Optional[bool] = ...) -> None: ...

class RespondResponse(_message.Message):
    __slots__ = ("audio", "transcript", "frames", "sample_rate", "voice", "seed", "timings", "text_tokens", "agent_codes", "user_codes")
    AUDIO_FIELD_NUMBER: _ClassVar[int]
    TRANSCRIPT_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_RATE_FIELD_NUMBER: _ClassVar[int]
    VOICE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    TEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    AGENT_CODES_FIELD_NUMBER: _ClassVar[int]
    USER_CODES_FIELD_NUMBER: _ClassVar[int]
    audio: bytes
    transcript: str
    frames: int
    sample_rate: int
    voice: str
    seed: int
    timings: Timings
    text_tokens: _containers.RepeatedScalarFieldContainer[int]
    agent_codes: _containers.RepeatedScalarFieldContainer[int]
    user_codes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, audio: _Optional[bytes] = ..., transcript: _Optional[str] = ..., frames: _Optional[int] = ..., sample_rate: _Optional[int] = ..., voice: _Optional[str] = ..., seed: _Optional[int] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., text_tokens: _Optional[_Iterable[int]] = ..., agent_codes: _Optional[_Iterable[int]] = ..., user_codes: _Optional[_Iterable[int]] = ...) -> None: ...

class RespondChunk(_message.Message):
    __slots__ = ("header", "audio", "summary")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    AUDIO_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    header: RespondHeader
    audio: Audio
    summary: RespondSummary
    def __init__(self, header: _Optional[_Union[RespondHeader, _Mapping]] = ..., audio: _Optional[_Union[Audio, _Mapping]] = ..., summary: _Optional[_Union[RespondSummary, _Mapping]] = ...) -> None: ...

class RespondHeader(_message.Message):
    __slots__ = ("voice", "seed", "format", "sample_rate", "frame_size")
    VOICE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_RATE_FIELD_NUMBER: _ClassVar[int]
    FRAME_SIZE_FIELD_NUMBER: _ClassVar[int]
    voice: str
    seed: int
    format: AudioFormat
    sample_rate: int
    frame_size: int
    def __init__(self, voice: _Optional[str] = ..., seed: _Optional[int] = ..., format: _Optional[_Union[AudioFormat, str]] = ..., sample_rate: _Optional[int] = ..., frame_size: _Optional[int] = ...) -> None: ...

class RespondSummary(_message.Message):
    __slots__ = ("transcript", "frames", "timings", "user_codes")
    TRANSCRIPT_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    USER_CODES_FIELD_NUMBER: _ClassVar[int]
    transcript: str
    frames: int
    timings: Timings
    user_codes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, transcript: _Optional[str] = ..., frames: _Optional[int] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ..., user_codes: _Optional[_Iterable[int]] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("setup_ms", "time_to_first_audio_ms", "rtf", "encode", "temporal", "depformer", "decode")
    SETUP_MS_FIELD_NUMBER: _ClassVar[int]
    TIME_TO_FIRST_AUDIO_MS_FIELD_NUMBER: _ClassVar[int]
    RTF_FIELD_NUMBER: _ClassVar[int]
    ENCODE_FIELD_NUMBER: _ClassVar[int]
    TEMPORAL_FIELD_NUMBER: _ClassVar[int]
    DEPFORMER_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    setup_ms: float
    time_to_first_audio_ms: float
    rtf: float
    encode: StageTimings
    temporal: StageTimings
    depformer: StageTimings
    decode: StageTimings
    def __init__(self, setup_ms: _Optional[float] = ..., time_to_first_audio_ms: _Optional[float] = ..., rtf: _Optional[float] = ..., encode: _Optional[_Union[StageTimings, _Mapping]] = ..., temporal: _Optional[_Union[StageTimings, _Mapping]] = ..., depformer: _Optional[_Union[StageTimings, _Mapping]] = ..., decode: _Optional[_Union[StageTimings, _Mapping]] = ...) -> None: ...

class StageTimings(_message.Message):
    __slots__ = ("median_ms", "p99_ms")
    MEDIAN_MS_FIELD_NUMBER: _ClassVar[int]
    P99_MS_FIELD_NUMBER: _ClassVar[int]
    median_ms: float
    p99_ms: float
    def __init__(self, median_ms: _Optional[float] = ..., p99_ms: _Optional[float] = ...) -> None: ...

class ConverseRequest(_message.Message):
    __slots__ = ("start", "audio", "end")
    START_FIELD_NUMBER: _ClassVar[int]
    AUDIO_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    start: Start
    audio: bytes
    end: End
    def __init__(self, start: _Optional[_Union[Start, _Mapping]] = ..., audio: _Optional[bytes] = ..., end: _Optional[_Union[End, _Mapping]] = ...) -> None: ...

class Start(_message.Message):
    __slots__ = ("voice", "system_prompt", "text_prompt", "sampling", "on_gap", "format", "sample_rate", "include_tokens")
    VOICE_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_PROMPT_FIELD_NUMBER: _ClassVar[int]
    TEXT_PROMPT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    ON_GAP_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_RATE_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    voice: str
    system_prompt: str
    text_prompt: str
    sampling: Sampling
    on_gap: OnGap
    format: AudioFormat
    sample_rate: int
    include_tokens: bool
    def __init__(self, voice: _Optional[str] = ..., system_prompt: _Optional[str] = ..., text_prompt: _Optional[str] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., on_gap: _Optional[_Union[OnGap, str]] = ..., format: _Optional[_Union[AudioFormat, str]] = ..., sample_rate: _Optional[int] = ..., include_tokens: _Optional[bool] = ...) -> None: ...

class End(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ConverseResponse(_message.Message):
    __slots__ = ("ready", "audio", "warning", "stats", "ended")
    READY_FIELD_NUMBER: _ClassVar[int]
    AUDIO_FIELD_NUMBER: _ClassVar[int]
    WARNING_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    ready: Ready
    audio: Audio
    warning: Warning
    stats: Stats
    ended: Ended
    def __init__(self, ready: _Optional[_Union[Ready, _Mapping]] = ..., audio: _Optional[_Union[Audio, _Mapping]] = ..., warning: _Optional[_Union[Warning, _Mapping]] = ..., stats: _Optional[_Union[Stats, _Mapping]] = ..., ended: _Optional[_Union[Ended, _Mapping]] = ...) -> None: ...

class Ready(_message.Message):
    __slots__ = ("conversation_id", "voice", "seed", "format", "sample_rate", "frame_size", "setup_ms", "resume", "index", "missed_text")
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    VOICE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_RATE_FIELD_NUMBER: _ClassVar[int]
    FRAME_SIZE_FIELD_NUMBER: _ClassVar[int]
    SETUP_MS_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    MISSED_TEXT_FIELD_NUMBER: _ClassVar[int]
    conversation_id: str
    voice: str
    seed: int
    format: AudioFormat
    sample_rate: int
    frame_size: int
    setup_ms: float
    resume: Resume
    index: int
    missed_text: str
    def __init__(self, conversation_id: _Optional[str] = ..., voice: _Optional[str] = ..., seed: _Optional[int] = ..., format: _Optional[_Union[AudioFormat, str]] = ..., sample_rate: _Optional[int] = ..., frame_size: _Optional[int] = ..., setup_ms: _Optional[float] = ..., resume: _Optional[_Union[Resume, _Mapping]] = ..., index: _Optional[int] = ..., missed_text: _Optional[str] = ...) -> None: ...

class Resume(_message.Message):
    __slots__ = ("token", "seconds")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    token: str
    seconds: float
    def __init__(self, token: _Optional[str] = ..., seconds: _Optional[float] = ...) -> None: ...

class Audio(_message.Message):
    __slots__ = ("index", "data", "text", "text_token", "agent_codes")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TEXT_TOKEN_FIELD_NUMBER: _ClassVar[int]
    AGENT_CODES_FIELD_NUMBER: _ClassVar[int]
    index: int
    data: bytes
    text: str
    text_token: int
    agent_codes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, index: _Optional[int] = ..., data: _Optional[bytes] = ..., text: _Optional[str] = ..., text_token: _Optional[int] = ..., agent_codes: _Optional[_Iterable[int]] = ...) -> None: ...

class Warning(_message.Message):
    __slots__ = ("code", "message", "seconds_left")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_LEFT_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    seconds_left: float
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., seconds_left: _Optional[float] = ...) -> None: ...

class Stats(_message.Message):
    __slots__ = ("index", "latency_ms", "dropped_frames", "queued_ms")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FRAMES_FIELD_NUMBER: _ClassVar[int]
    QUEUED_MS_FIELD_NUMBER: _ClassVar[int]
    index: int
    latency_ms: float
    dropped_frames: int
    queued_ms: float
    def __init__(self, index: _Optional[int] = ..., latency_ms: _Optional[float] = ..., dropped_frames: _Optional[int] = ..., queued_ms: _Optional[float] = ...) -> None: ...

class Ended(_message.Message):
    __slots__ = ("reason", "message", "frames", "seconds", "transcript", "dropped_frames", "late_frames")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    TRANSCRIPT_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FRAMES_FIELD_NUMBER: _ClassVar[int]
    LATE_FRAMES_FIELD_NUMBER: _ClassVar[int]
    reason: EndReason
    message: str
    frames: int
    seconds: float
    transcript: str
    dropped_frames: int
    late_frames: int
    def __init__(self, reason: _Optional[_Union[EndReason, str]] = ..., message: _Optional[str] = ..., frames: _Optional[int] = ..., seconds: _Optional[float] = ..., transcript: _Optional[str] = ..., dropped_frames: _Optional[int] = ..., late_frames: _Optional[int] = ...) -> None: ...
