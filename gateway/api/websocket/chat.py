"""WebSocket `/api/chat`: the reference server's protocol, so that its clients and those of Moshi connect unchanged.

What the caller wants is in the query. Then binary messages, whose first byte says what they are: the server sends a
handshake when the prompt is in the models, then Ogg/Opus, a page per frame, and pieces of text; the caller sends
Ogg/Opus. Unlike the reference, this server honours the sampling parameters, keeps audio that comes before the
handshake, serves many callers at once, and tells in an error message why it closes.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

from fastapi import APIRouter
from pydantic import BaseModel, Field, ValidationError

from gateway.api.rest.schemas import MAX_PROMPT_CHARACTERS, SEED_BITS, PersonaParams, Temperature, TopK
from gateway.api.websocket.connection import Connection, Gone
from gateway.api.websocket.session import FAILURES, SessionRequest, WebSocketEndpoint, WebSocketSession
from gateway.audio.ogg_opus import OggOpusReader, OggOpusWriter
from gateway.errors import InvalidRequest
from gateway.session import request as question
from gateway.session.events import AgentAudio, Ended, Event, Ready, Reason
from gateway.session.live import LiveSession
from gateway.session.runtime import Runtime

PATH = "/api/chat"

HANDSHAKE, AUDIO, TEXT, ERROR, PING = b"\x00", b"\x01", b"\x02", b"\x05", b"\x06"

# The reference's page hangs up when it hears nothing for 10 s; a long prompt may take longer.
PING_S = 4.0

_UNSEEDED = -1
# Two seeds into one: any fixed function will do.
_SEED_FACTOR = 1_000_003


class ChatQuery(BaseModel):
    """The query, as the reference's page and command line send it. What else they send has no meaning here."""

    voice_prompt: str = Field("", max_length=200)
    """A preset's name, or that of its file in the release."""
    text_prompt: str | None = Field(None, max_length=MAX_PROMPT_CHARACTERS)
    seed: int | None = Field(None, ge=_UNSEEDED, lt=2**SEED_BITS)
    text_seed: int | None = None
    audio_seed: int | None = None
    """The page sends two; together they are the seed if there is no other."""
    text_temperature: Temperature | None = None
    text_topk: TopK | None = None
    audio_temperature: Temperature | None = None
    audio_topk: TopK | None = None

    def params(self) -> PersonaParams:
        """The same in the words of the other faces."""
        return PersonaParams(
            voice=self.voice_prompt.removesuffix(".pt") or None,
            system_prompt=None,
            text_prompt=self.text_prompt,
            greedy=None,
            seed=self._seed(),
            text_temperature=self.text_temperature,
            text_top_k=self.text_topk,
            audio_temperature=self.audio_temperature,
            audio_top_k=self.audio_topk,
        )

    def _seed(self) -> int | None:
        if self.seed is not None:
            return None if self.seed == _UNSEEDED else self.seed
        if self.text_seed is None and self.audio_seed is None:
            return None
        return ((self.text_seed or 0) * _SEED_FACTOR + (self.audio_seed or 0)) % (1 << SEED_BITS)


def router(runtime: Runtime) -> APIRouter:
    """The route, to be included in an app."""
    routes = APIRouter()
    routes.add_websocket_route(PATH, WebSocketEndpoint(runtime, Chat), name="chat")  # type: ignore[arg-type]
    return routes


class Chat(WebSocketSession):
    """One caller of `/api/chat`."""

    def __init__(self, runtime: Runtime, connection: Connection) -> None:
        super().__init__(runtime, connection)
        self._reader = OggOpusReader()
        self._writer = OggOpusWriter()
        self._greeted = False

    async def run(self) -> None:
        """The whole connection."""
        pinging = asyncio.create_task(self._ping())
        try:
            await super().run()
        finally:
            pinging.cancel()

    async def begin(self) -> SessionRequest:
        """What the query says."""
        try:
            # Nothing after the = is no wish, but for the prompt, where it wishes for none.
            said = {name: value for name, value in self.connection.query.items() if value or name == "text_prompt"}
            params = ChatQuery.model_validate(said).params()
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            name = str(first["loc"][0])
            raise InvalidRequest(f"{name}: {first['msg']}", field=name) from None
        return SessionRequest(question.persona(params, self.runtime), question.sampling(params, self.runtime))

    async def hear(self, message: str | bytes, live: LiveSession) -> None:
        """Audio. Everything else is ignored, as the reference does."""
        if not isinstance(message, bytes) or message[:1] != AUDIO:
            return
        for pcm in self._reader.read(message[1:]):
            await live.put(pcm)
        if self._reader.ended:
            live.hang_up()

    async def tell(self, event: Event) -> None:
        """A frame's text before its audio; warnings have no place in this protocol."""
        send = self.connection.send
        if isinstance(event, AgentAudio):
            if event.frame.text:
                await send(TEXT + event.frame.text.encode())
            await send(AUDIO + self._writer.write(event.frame.pcm))
        elif isinstance(event, Ready):
            self._greeted = True
            await send(HANDSHAKE)
            await send(AUDIO + self._writer.head())
        elif isinstance(event, Ended) and event.reason is not Reason.COMPLETED and event.reason not in FAILURES:
            await self.complain(event.reason.value, event.message)

    async def complain(self, kind: str, message: str) -> None:
        """As an error message, for people."""
        await self.connection.send(ERROR + message.encode())

    async def _ping(self) -> None:
        with suppress(Gone):
            while not self._greeted:
                await asyncio.sleep(PING_S)
                await self.connection.send(PING)
