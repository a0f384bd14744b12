"""The answer to a recording, and the parameters of requests."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, TypedDict


class PersonaParams(TypedDict, total=False):
    """Voice, prompt and sampling; what is left out has the server's default. See the API reference."""

    voice: str
    system_prompt: str
    text_prompt: str
    greedy: bool
    seed: int
    audio_temperature: float
    audio_top_k: int
    text_temperature: float
    text_top_k: int


class LiveParams(PersonaParams, total=False):
    """Parameters of a conversation."""

    on_gap: Literal["wait", "silence"]


class RespondParams(PersonaParams, total=False):
    """Parameters of the answer to a recording.

    voice_audio: a recording of the voice to use. max_steps: frames of 80 ms to answer. keep: the conversation, for
    further turns. conversation_id: the one to continue. include: `tokens` adds all tokens to the answer.
    """

    voice_audio: bytes
    max_steps: int
    keep: bool
    conversation_id: str
    include: Sequence[Literal["tokens"]]


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a recording.

    audio: a WAV, mono PCM16. frames: of 80 ms. timings: as the API reference has them. With `include`: text_tokens
    [frames], agent_codes and user_codes [frames][8].
    """

    audio: bytes
    transcript: str
    frames: int
    sample_rate: int
    voice: str
    seed: int
    timings: dict[str, Any]
    conversation_id: str | None = None
    text_tokens: list[int] | None = None
    agent_codes: list[list[int]] | None = None
    user_codes: list[list[int]] | None = None

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Answer:
        """Read the body of a response; fields of later servers are ignored. Raises ValueError if one is missing."""
        known = {each.name: body[each.name] for each in fields(cls) if each.name in body}
        missing = {each.name for each in fields(cls) if each.default is MISSING} - known.keys()
        if missing:
            raise ValueError(f"without {', '.join(sorted(missing))}")
        return cls(**{**known, "audio": b64decode(known["audio"], validate=True)})
