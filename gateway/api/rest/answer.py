"""The models' answer to a question: whole, or sent frame by frame as it is made."""

from __future__ import annotations

import asyncio
import json
import logging
from binascii import b2a_base64
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any
from uuid import uuid4

import numpy as np
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from gateway.api.rest.disconnect import ClientGone, abort, while_connected
from gateway.api.rest.schemas import RespondAnswer, Stages, StageTimings, Timings
from gateway.api.sending import send_all
from gateway.audio.wav import HEADER_BYTES, header, pcm16
from gateway.engine.backend import Tokens
from gateway.engine.batch import AgentFrame
from gateway.errors import Draining, GatewayError, SlowClient
from gateway.session.leases import ConversationLease
from gateway.session.recorded import RecordedResponse
from gateway.session.request import RecordedRequest
from gateway.session.runtime import Runtime
from gateway.session.session_info import SessionInfo
from gateway.session.stats import SessionStats

logger = logging.getLogger(__name__)

WAV = "audio/wav"
CONVERSATION = "X-PersonaPlex-Conversation"

# 61 kB of audio, 0.2 ms to convert and encode.
_FRAMES_PER_PIECE = 16
_FRAMES_PER_TOKEN_PIECE = 500
_AUDIO = "@audio@"


@dataclass(frozen=True, eq=False)
class Answer:
    """All of it. user_codes: [8] per frame."""

    question: RecordedRequest
    frames: list[AgentFrame]
    user_codes: list[Tokens]
    stats: SessionStats
    sample_rate: int
    conversation_id: str | None

    def wav(self) -> bytes:
        """The audio as a file."""
        return b"".join(self.wav_pieces())

    @property
    def wav_bytes(self) -> int:
        """Size of the audio as a file."""
        return HEADER_BYTES + 2 * sum(len(frame.pcm) for frame in self.frames)

    def wav_pieces(self) -> Iterator[bytes]:
        """The audio as a file, in pieces that each take less than 1 ms to make."""
        samples = sum(len(frame.pcm) for frame in self.frames)
        yield header(self.sample_rate, samples)
        for at in range(0, len(self.frames), _FRAMES_PER_PIECE):
            yield pcm16(np.concatenate([frame.pcm for frame in self.frames[at : at + _FRAMES_PER_PIECE]]))

    def headers(self) -> dict[str, str]:
        """What a WAV has no place for."""
        stats = self.stats
        kept = {} if self.conversation_id is None else {CONVERSATION: self.conversation_id}
        return {
            **kept,
            "X-PersonaPlex-Seed": str(self.question.sampling.seed),
            "X-PersonaPlex-Frames": str(len(self.frames)),
            "X-PersonaPlex-RTF": f"{stats.rtf:.4f}",
            "X-PersonaPlex-Setup-Ms": f"{stats.setup_seconds * 1000:.1f}",
            "X-PersonaPlex-First-Audio-Ms": f"{stats.first_audio_seconds * 1000:.1f}",
        }

    def json_around_audio(self) -> tuple[bytes, bytes]:
        """The JSON answer, with tokens if they were requested, before and after the text of its audio."""
        with_tokens = self.question.with_tokens
        stats = self.stats
        answer = RespondAnswer(
            audio=_AUDIO,
            transcript="".join(frame.text for frame in self.frames).strip(),
            frames=len(self.frames),
            sample_rate=self.sample_rate,
            voice=self.question.voice,
            seed=self.question.sampling.seed,
            timings=Timings(
                setup_ms=stats.setup_seconds * 1000,
                time_to_first_audio_ms=stats.first_audio_seconds * 1000,
                stages=Stages(**{name: StageTimings(**asdict(of)) for name, of in stats.stages().items()}),
                rtf=stats.rtf,
            ),
            conversation_id=self.conversation_id,
            text_tokens=None,
            agent_codes=None,
            user_codes=None,
        )
        # The audio is the first field, so its placeholder is the first match.
        head, _, tail = answer.model_dump_json(exclude_none=True).encode().partition(_AUDIO.encode())
        return head, tail.removesuffix(b"}") + self._tokens_json() + b"}" if with_tokens else tail

    def _tokens_json(self) -> bytes:
        """The fields of the tokens, in pieces that hold the GIL for about 1 ms each."""
        fields: dict[str, list[Any]] = {
            "text_tokens": [frame.text_token for frame in self.frames],
            "agent_codes": [frame.codes for frame in self.frames],
            "user_codes": self.user_codes,
        }
        pieces = []
        for name, values in fields.items():
            parts = [
                json.dumps(np.array(values[at : at + _FRAMES_PER_TOKEN_PIECE]).tolist(), separators=(",", ":"))[1:-1]
                for at in range(0, len(values), _FRAMES_PER_TOKEN_PIECE)
            ]
            pieces.append(f',"{name}":[{",".join(parts)}]')
        return "".join(pieces).encode()

    def json_pieces(self, head: bytes, tail: bytes) -> Iterator[bytes]:
        """The JSON answer in pieces that each take less than 1 ms to make."""
        yield head
        rest = b""
        for piece in self.wav_pieces():
            data = rest + piece
            whole = len(data) // 3 * 3
            yield b2a_base64(data[:whole], newline=False)
            rest = data[whole:]
        yield b2a_base64(rest, newline=False) + tail


class PiecewiseResponse(Response):
    """Send a complete answer in pieces, none of which occupies the event loop for long.

    A client that does not read for the idle time is disconnected.
    """

    def __init__(
        self, pieces: Iterator[bytes], size: int, media_type: str, headers: dict[str, str], runtime: Runtime
    ) -> None:
        """`size`: bytes of all pieces."""
        self._pieces = pieces
        self._runtime = runtime
        super().__init__(headers={**headers, "Content-Length": str(size)}, media_type=media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, send_all(self._messages(), send, self._runtime))
        except ClientGone:
            pass
        except SlowClient as error:
            logger.info("an answer was abandoned: %s", error.message)
            abort(scope)

    async def _messages(self) -> AsyncGenerator[Message, None]:
        yield {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        for piece in self._pieces:
            yield {"type": "http.response.body", "body": piece, "more_body": True}
            # uvicorn's send returns without a pause while its buffer has room.
            await asyncio.sleep(0)
        yield {"type": "http.response.body", "body": b"", "more_body": False}


async def whole(question: RecordedRequest, runtime: Runtime) -> Answer:
    """Every frame, then the answer. Raises what `answering` raises."""
    async with answering(question, runtime) as under_way:
        frames = [frame async for frame in under_way.frames()]
    return Answer(
        question,
        frames,
        under_way.user_codes,
        under_way.stats,
        runtime.manifest.sample_rate,
        under_way.conversation_id,
    )


async def pieces(question: RecordedRequest, runtime: Runtime) -> AsyncGenerator[bytes, None]:
    """The bytes of a WAV, frame by frame; raises what `whole` raises. To be closed, also half way."""
    samples = None if question.max_steps is None else question.max_steps * runtime.manifest.frame_size
    before = header(runtime.manifest.sample_rate, samples)
    async with answering(question, runtime) as under_way:
        async for frame in under_way.frames():
            yield before + pcm16(frame.pcm)
            before = b""


class Answering:
    """An answer under way; ends with Draining, between two frames, once the server's drain time is over."""

    def __init__(
        self, reply: RecordedResponse, call: ConversationLease, conversation_id: str | None, retry_after: int
    ) -> None:
        self.stats: SessionStats = call.stats
        self.conversation_id = conversation_id
        """Of a conversation that is kept for another turn."""
        self._reply = reply
        self._retry_after = retry_after
        self._drained = False

    @property
    def user_codes(self) -> list[Tokens]:
        """The user's codes [8] per frame; complete when `frames` has ended."""
        return self._reply.user_codes

    async def frames(self) -> AsyncIterator[AgentFrame]:
        """The agent's frames as they are made. Raises Draining, EngineUnavailable or EngineError."""
        async for frame in self._reply.frames():
            if self._drained:
                raise Draining(self._retry_after)
            yield frame

    def stop_for_drain(self) -> None:
        """The server's drain time is over."""
        self._drained = True


@asynccontextmanager
async def answering(question: RecordedRequest, runtime: Runtime) -> AsyncIterator[Answering]:
    """The answer to a question, in a conversation in a slot or in a kept one.

    Raises Draining, TooManyForKey, AtCapacity, UnknownConversation, EngineUnavailable or EngineError.
    """
    async with _conversation(question, runtime) as (call, conversation_id):
        reply = RecordedResponse(
            call.conversation, question.pcm, runtime.manifest, question.max_steps, limit=runtime.settings.max_steps
        )
        under_way = Answering(reply, call, conversation_id, runtime.settings.retry_after)
        kept = question.kept
        info = SessionInfo(str(uuid4()), "recorded", question.voice) if kept is None else kept.info
        with runtime.sessions.register(under_way, info):
            yield under_way


class StreamedWav(Response):
    """Sends pieces as they come, until they end or the caller hangs up or stops reading.

    Their source is closed in any case.
    """

    media_type = WAV

    def __init__(
        self, first: bytes, rest: AsyncGenerator[bytes, None], question: RecordedRequest, runtime: Runtime
    ) -> None:
        self._first = first
        self._rest = rest
        self._runtime = runtime
        kept = {CONVERSATION: question.kept.id} if question.kept and question.keep else {}
        super().__init__(headers={"X-PersonaPlex-Seed": str(question.sampling.seed), **kept})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, send_all(self._messages(), send, self._runtime))
        except ClientGone:
            pass
        except SlowClient as error:
            logger.info("a streamed answer was given up: %s", error.message)
            # What is not sent yet would keep the connection open for as long.
            abort(scope)
        except GatewayError as error:
            # The status has been sent: what is left to say is that the body ends before its end.
            logger.error("a streamed answer broke off: %s", error.message)
        finally:
            await self._rest.aclose()

    async def _messages(self) -> AsyncGenerator[Message, None]:
        yield {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        yield {"type": "http.response.body", "body": self._first, "more_body": True}
        async for piece in self._rest:
            yield {"type": "http.response.body", "body": piece, "more_body": True}
        yield {"type": "http.response.body", "body": b"", "more_body": False}


@asynccontextmanager
async def _conversation(
    question: RecordedRequest, runtime: Runtime
) -> AsyncIterator[tuple[ConversationLease, str | None]]:
    """A conversation for this question alone, or a kept one and its id."""
    kept = question.kept
    if kept is None:
        async with runtime.leases.open(question.persona, question.sampling, question.key, question.slot) as call:
            yield call, None
        return
    async with kept.turn(question.slot) as call:
        yield call, kept.id if question.keep else None
    if not question.keep:
        await kept.end()
