"""Events of a live conversation, in the order in which the server sends them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Ready:
    """The models hold the prompt; the agent's next frame follows. sample_rate: of the agent, in Hz. frame_size: in
    samples. setup_ms: what it took.

    It comes again when the connection was lost and the conversation is resumed. index: of the next frame. missed_text:
    of the frames that were not sent meanwhile, in which the agent heard silence.
    """

    conversation_id: str
    voice: str
    seed: int
    sample_rate: int
    frame_size: int
    setup_ms: float
    index: int = 0
    missed_text: str = ""


@dataclass(frozen=True, slots=True)
class AgentText:
    """Text of frame `index`, whose audio comes next."""

    index: int
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class AgentAudio:
    """80 ms of the agent. pcm: [1920] float32 at 24 kHz, within ±1."""

    index: int
    pcm: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Stats:
    """About once a second. latency_ms: the maximum since the last one. queued_ms: audio that waits in the server."""

    index: int
    latency_ms: float
    dropped_frames: int
    queued_ms: float


@dataclass(frozen=True, slots=True)
class Warning:
    """A condition to know about, such as the end of the longest duration. seconds_left: until it takes effect."""

    code: str
    message: str
    seconds_left: float | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """The last event: `reason` for programs ("completed" after `end`), `message` for people, and totals."""

    reason: str
    message: str
    frames: int
    seconds: float
    transcript: str
    dropped_frames: int
    late_frames: int


Event = Ready | AgentText | AgentAudio | Stats | Warning | Ended
