"""Callers who come and go for as long as it lasts: over every face, and some of them without a word."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from contextlib import suppress
from urllib.parse import urlencode

import httpx
import numpy as np
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from gateway.audio.ogg_opus import OggOpusWriter
from loadtest.faces import Line
from loadtest.faces.grpc import GrpcLine
from loadtest.faces.websocket import WebSocketLine
from loadtest.plan import Plan
from loadtest.question import FRAME_SIZE, Question
from loadtest.record import FRAME_SECONDS, CallFailed, Refused

FACES = ("grpc", "websocket", "chat", "rest")
COMPLETED, VANISHED, REFUSED, FAILED = "completed", "vanished", "refused", "failed"

_TRY_LATER = 1013
_UNAVAILABLE = 503
# How long after a refusal, or the end of a conversation, the next caller comes.
_PAUSE_S = 0.2
_SETUP_S = 30.0


class Passers:
    """`plan.users` at once, each a conversation of `shortest` to `longest` seconds, then the next one."""

    def __init__(
        self, plan: Plan, question: Question, *, shortest: float, longest: float, vanish: float, seed: int
    ) -> None:
        """`vanish`: the share of callers who go without a word."""
        self._plan = plan
        self._question = question
        self._lengths = shortest, longest
        self._vanish = vanish
        self._draw = random.Random(seed)
        self.outcomes: Counter[tuple[str, str]] = Counter()
        """By face and what became of it."""
        self.failures: list[str] = []

    async def run(self, seconds: float) -> None:
        """Returns when the last conversation that was begun in time is over."""
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for user in range(self._plan.users):
                group.create_task(self._one_after_another(user, until))

    def total(self, outcome: str) -> int:
        """Over all faces."""
        return sum(number for (_, kind), number in self.outcomes.items() if kind == outcome)

    async def _one_after_another(self, user: int, until: float) -> None:
        seed = user
        while (left := until - time.monotonic()) > 0:
            seed += self._plan.users
            face = self._draw.choice(FACES)
            seconds = min(self._draw.uniform(*self._lengths), left)
            vanishes = self._draw.random() < self._vanish
            try:
                outcome = await self._call(face, seed, seconds, vanishes)
            except Refused:
                outcome = REFUSED
            except (CallFailed, httpx.HTTPError, WebSocketException, OSError, TimeoutError) as error:
                outcome = FAILED
                self.failures.append(f"{face}: {type(error).__name__}: {error}")
            self.outcomes[face, outcome] += 1
            await asyncio.sleep(_PAUSE_S)

    async def _call(self, face: str, seed: int, seconds: float, vanishes: bool) -> str:
        if face == "rest":
            await self._ask(seed, seconds, vanishes)
        elif face == "chat":
            await self._chat(seed, seconds, vanishes)
        else:
            kind = GrpcLine if face == "grpc" else WebSocketLine
            await self._converse(kind(self._plan, self._question, seed, lambda _index, _size: None), seconds, vanishes)
        return VANISHED if vanishes else COMPLETED

    async def _converse(self, line: Line, seconds: float, vanishes: bool) -> None:
        try:
            async with asyncio.timeout(_SETUP_S):
                await line.open()
            for u in range(_frames(seconds)):
                await line.send(u)
                await asyncio.sleep(FRAME_SECONDS)
            if not vanishes:
                async with asyncio.timeout(_SETUP_S):
                    await line.finish()
        finally:
            line.close()

    async def _chat(self, seed: int, seconds: float, vanishes: bool) -> None:
        address = f"{self._plan.server.replace('http', 'ws', 1)}/api/chat?{urlencode({'seed': seed})}"
        key = {"Authorization": f"Bearer {self._plan.api_key}"} if self._plan.api_key else None
        async with connect(address, compression=None, proxy=None, additional_headers=key) as client:
            hearing = asyncio.create_task(_hear(client))
            try:
                writer = OggOpusWriter()
                await client.send(b"\x01" + writer.head())
                frames = _frames(seconds)
                for u in range(frames):
                    pcm = np.frombuffer(self._question.frame(u), "<i2").astype(np.float32) / np.float32(32768)
                    await client.send(b"\x01" + writer.write(pcm, last=u == frames - 1 and not vanishes))
                    await asyncio.sleep(FRAME_SECONDS)
                if vanishes:
                    client.transport.abort()
            except ConnectionClosed:
                pass
            async with asyncio.timeout(_SETUP_S):
                await hearing
        if client.close_code == _TRY_LATER:
            raise Refused
        if not vanishes and client.close_code != 1000:
            raise CallFailed(f"closed with {client.close_code}: {client.close_reason}")

    async def _ask(self, seed: int, seconds: float, vanishes: bool) -> None:
        """As many questions as the time holds, the answer's frames as fast as they come."""
        headers = {"content-type": "application/json", "accept": "audio/wav"}
        if self._plan.api_key:
            headers["authorization"] = f"Bearer {self._plan.api_key}"
        until = time.monotonic() + seconds
        async with httpx.AsyncClient(timeout=_SETUP_S, trust_env=False) as client:
            while True:
                body = self._question.respond_body(seed)
                async with client.stream(
                    "POST", f"{self._plan.server}/v1/respond", content=body, headers=headers
                ) as answer:
                    if answer.status_code == _UNAVAILABLE:
                        raise Refused
                    if not answer.is_success:
                        raise CallFailed(f"HTTP status {answer.status_code}")
                    some = self._draw.randint(1, 40) * 2 * FRAME_SIZE
                    got = 0
                    async for piece in answer.aiter_raw():
                        got += len(piece)
                        if vanishes and got > some:
                            return
                if time.monotonic() > until:
                    return
                await asyncio.sleep(self._draw.random())


async def _hear(client: ClientConnection) -> None:
    with suppress(ConnectionClosed):
        while True:
            await client.recv()


def _frames(seconds: float) -> int:
    return max(1, round(seconds / FRAME_SECONDS))
