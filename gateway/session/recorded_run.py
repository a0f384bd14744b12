"""Run a recorded request in a conversation: frame by frame, or to its end."""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np

from gateway.audio.wav import HEADER_BYTES, header, pcm16
from gateway.engine.backend import Tokens
from gateway.engine.batch import AgentFrame
from gateway.errors import Draining
from gateway.session.leases import ConversationLease
from gateway.session.recorded import RecordedResponse
from gateway.session.request import RecordedRequest
from gateway.session.runtime import Runtime
from gateway.session.session_info import SessionInfo
from gateway.session.stats import SessionStats

# 61 kB of audio, 0.1 ms to encode.
_FRAMES_PER_PIECE = 16


@dataclass(frozen=True, eq=False)
class RecordedResult:
    """A complete response of F frames.

    pcm: int16 samples of each frame. text_tokens: [F] int64. agent_codes, user_codes: [F, 8] int64. Ten minutes as
    `AgentFrame`s would occupy the event loop for 20 ms when they are freed.
    """

    request: RecordedRequest
    pcm: list[bytes]
    transcript: str
    text_tokens: Tokens
    agent_codes: Tokens
    user_codes: Tokens
    stats: SessionStats
    sample_rate: int
    conversation_id: str | None

    @property
    def frames(self) -> int:
        """Number of frames, F."""
        return len(self.pcm)

    def wav(self) -> bytes:
        """Encode the audio as a WAV file."""
        return b"".join(self.wav_pieces())

    @property
    def wav_bytes(self) -> int:
        """Size of the WAV file."""
        return HEADER_BYTES + sum(map(len, self.pcm))

    def wav_pieces(self) -> Iterator[bytes]:
        """Encode the audio as a WAV file, in pieces that each take less than 1 ms."""
        yield header(self.sample_rate, sum(map(len, self.pcm)) // 2)
        for at in range(0, len(self.pcm), _FRAMES_PER_PIECE):
            yield b"".join(self.pcm[at : at + _FRAMES_PER_PIECE])


class RecordedRun:
    """A recorded request in progress. Once the server's drain time is over, it ends with Draining after a frame."""

    def __init__(
        self, response: RecordedResponse, lease: ConversationLease, conversation_id: str | None, retry_after: int
    ) -> None:
        self.stats: SessionStats = lease.stats
        self.conversation_id = conversation_id
        """Of the turn session, if it continues after this request."""
        self._response = response
        self._retry_after = retry_after
        self._drained = False

    @property
    def user_codes(self) -> Tokens:
        """The user's codes [F, 8]; complete when `frames` has ended."""
        return self._response.user_codes

    async def frames(self) -> AsyncIterator[AgentFrame]:
        """Yield the agent's frames as they are generated. Raises Draining, EngineUnavailable or EngineError."""
        async for frame in self._response.frames():
            if self._drained:
                raise Draining(self._retry_after)
            yield frame

    def stop_for_drain(self) -> None:
        """The server's drain time is over."""
        self._drained = True


@asynccontextmanager
async def open_recorded_run(request: RecordedRequest, runtime: Runtime) -> AsyncIterator[RecordedRun]:
    """Run a request in a conversation of its own, or in its turn session.

    Raises Draining, TooManyForKey, AtCapacity, UnknownConversation, EngineUnavailable or EngineError.
    """
    async with _lease(request, runtime) as (lease, conversation_id):
        response = RecordedResponse(
            lease.conversation, request.pcm, runtime.manifest, request.max_steps, limit=runtime.settings.max_steps
        )
        run = RecordedRun(response, lease, conversation_id, runtime.settings.retry_after)
        session, api = request.turn_session, request.caller.api
        info = SessionInfo(lease.record.id, "recorded", api, request.voice) if session is None else session.info
        with runtime.sessions.register(run, info):
            yield run


async def run_recorded(request: RecordedRequest, runtime: Runtime) -> RecordedResult:
    """Run a request to its end. Raises what `open_recorded_run` raises."""
    async with open_recorded_run(request, runtime) as run:
        pcm, texts, text_tokens, agent_codes = [], [], array("q"), array("q")
        async for frame in run.frames():
            pcm.append(pcm16(frame.pcm))
            texts.append(frame.text)
            text_tokens.append(frame.text_token)
            agent_codes.extend(frame.codes.tolist())
    return RecordedResult(
        request,
        pcm,
        "".join(texts).strip(),
        np.array(text_tokens),
        np.reshape(agent_codes, (len(pcm), -1)),
        run.user_codes,
        run.stats,
        runtime.manifest.sample_rate,
        run.conversation_id,
    )


@asynccontextmanager
async def _lease(request: RecordedRequest, runtime: Runtime) -> AsyncIterator[tuple[ConversationLease, str | None]]:
    """A lease for this request alone, or that of its turn session and, if the session continues, its id."""
    session = request.turn_session
    if session is None:
        async with runtime.leases.open(request.persona, request.sampling, request.caller, request.slot) as lease:
            yield lease, None
        return
    async with session.turn(request.slot) as lease:
        yield lease, session.id if request.keep else None
    if not request.keep:
        await session.end()
