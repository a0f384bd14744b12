"""Send the response to a recording over HTTP: complete as WAV or JSON, or as a WAV stream, frame by frame."""

from __future__ import annotations

import asyncio
import json
import logging
from binascii import b2a_base64
from collections.abc import AsyncGenerator, Iterator
from dataclasses import asdict

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from gateway.api.disconnect import ClientGone, abort, while_connected
from gateway.api.rest.schemas import RespondAnswer, Stages, StageTimings, Timings
from gateway.api.sending import send_all
from gateway.audio.wav import header, pcm16
from gateway.errors import GatewayError, SlowClient
from gateway.session.recorded_run import RecordedResult, open_recorded_run
from gateway.session.request import RecordedRequest
from gateway.session.runtime import Runtime

logger = logging.getLogger(__name__)

WAV = "audio/wav"
CONVERSATION = "X-PersonaPlex-Conversation"

_FRAMES_PER_TOKEN_PIECE = 500
_AUDIO = "@audio@"


def wav_headers(result: RecordedResult) -> dict[str, str]:
    """Return the values that a WAV file has no place for."""
    stats = result.stats
    conversation = {} if result.conversation_id is None else {CONVERSATION: result.conversation_id}
    return {
        **conversation,
        "X-PersonaPlex-Seed": str(result.request.sampling.seed),
        "X-PersonaPlex-Frames": str(result.frames),
        "X-PersonaPlex-RTF": f"{stats.rtf:.4f}",
        "X-PersonaPlex-Setup-Ms": f"{stats.setup_seconds * 1000:.1f}",
        "X-PersonaPlex-First-Audio-Ms": f"{stats.first_audio_seconds * 1000:.1f}",
    }


def json_around_audio(result: RecordedResult) -> tuple[bytes, bytes]:
    """Return the JSON document, with tokens if they were requested, before and after the text of its audio."""
    stats = result.stats
    answer = RespondAnswer(
        audio=_AUDIO,
        transcript=result.transcript,
        frames=result.frames,
        sample_rate=result.sample_rate,
        voice=result.request.voice,
        seed=result.request.sampling.seed,
        timings=Timings(
            setup_ms=stats.setup_seconds * 1000,
            time_to_first_audio_ms=stats.first_audio_seconds * 1000,
            stages=Stages(**{name: StageTimings(**asdict(of)) for name, of in stats.stages().items()}),
            rtf=stats.rtf,
        ),
        conversation_id=result.conversation_id,
        text_tokens=None,
        agent_codes=None,
        user_codes=None,
    )
    # The audio is the first field, so its placeholder is the first match.
    head, _, tail = answer.model_dump_json(exclude_none=True).encode().partition(_AUDIO.encode())
    return head, tail.removesuffix(b"}") + _tokens_json(result) + b"}" if result.request.with_tokens else tail


def _tokens_json(result: RecordedResult) -> bytes:
    """Encode the fields of the tokens, in pieces that hold the GIL for about 1 ms each."""
    pieces = []
    for name in ("text_tokens", "agent_codes", "user_codes"):
        values = getattr(result, name)
        parts = [
            json.dumps(values[at : at + _FRAMES_PER_TOKEN_PIECE].tolist(), separators=(",", ":"))[1:-1]
            for at in range(0, len(values), _FRAMES_PER_TOKEN_PIECE)
        ]
        pieces.append(f',"{name}":[{",".join(parts)}]')
    return "".join(pieces).encode()


def json_pieces(result: RecordedResult, head: bytes, tail: bytes) -> Iterator[bytes]:
    """Yield the JSON document in pieces that each take less than 1 ms. `head`, `tail`: of `json_around_audio`."""
    yield head
    rest = b""
    for piece in result.wav_pieces():
        data = rest + piece
        whole = len(data) // 3 * 3
        yield b2a_base64(data[:whole], newline=False)
        rest = data[whole:]
    yield b2a_base64(rest, newline=False) + tail


async def wav_stream(request: RecordedRequest, runtime: Runtime) -> AsyncGenerator[bytes, None]:
    """Run a request; yield the bytes of a WAV, frame by frame. The caller must close the generator.

    Raises what `run_recorded` raises.
    """
    samples = None if request.max_steps is None else request.max_steps * runtime.manifest.frame_size
    before = header(runtime.manifest.sample_rate, samples)
    async with open_recorded_run(request, runtime) as run:
        async for frame in run.frames():
            yield before + pcm16(frame.pcm)
            before = b""


class PiecewiseResponse(Response):
    """Send a complete response in pieces, none of which occupies the event loop for long.

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
            logger.info("a response was abandoned: %s", error.message)
            abort(scope)

    async def _messages(self) -> AsyncGenerator[Message, None]:
        yield {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        for piece in self._pieces:
            yield {"type": "http.response.body", "body": piece, "more_body": True}
            # uvicorn's send returns without a pause while its buffer has room.
            await asyncio.sleep(0)
        yield {"type": "http.response.body", "body": b"", "more_body": False}


class StreamedWav(Response):
    """Send pieces as they are generated, until they end or the client disconnects or stops reading.

    Their source is closed in any case.
    """

    media_type = WAV

    def __init__(
        self, first: bytes, rest: AsyncGenerator[bytes, None], request: RecordedRequest, runtime: Runtime
    ) -> None:
        self._first = first
        self._rest = rest
        self._runtime = runtime
        session = request.turn_session
        conversation = {CONVERSATION: session.id} if session is not None and request.keep else {}
        super().__init__(headers={"X-PersonaPlex-Seed": str(request.sampling.seed), **conversation})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, send_all(self._messages(), send, self._runtime))
        except ClientGone:
            pass
        except SlowClient as error:
            logger.info("a streamed response was abandoned: %s", error.message)
            # Unsent bytes would keep the connection open for the idle time again.
            abort(scope)
        except GatewayError as error:
            # The status has been sent. The missing end of the body shows the client that it is incomplete.
            logger.error("a streamed response failed: %s", error.message)
        finally:
            await self._rest.aclose()

    async def _messages(self) -> AsyncGenerator[Message, None]:
        yield {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        yield {"type": "http.response.body", "body": self._first, "more_body": True}
        async for piece in self._rest:
            yield {"type": "http.response.body", "body": piece, "more_body": True}
        yield {"type": "http.response.body", "body": b"", "more_body": False}
