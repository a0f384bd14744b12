"""Churn users: each holds short conversations one after the other, over every API; some disconnect without notice."""

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
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from loadtest.apis import LiveClient
from loadtest.apis.grpc import GrpcClient
from loadtest.apis.ogg_opus import OggOpusEncoder
from loadtest.apis.websocket import WebSocketClient
from loadtest.plan import Plan
from loadtest.record import FRAME_SECONDS, CallFailed, Refused
from loadtest.speech import FRAME_SIZE, Speech

APIS = ("grpc", "websocket", "chat", "rest")
COMPLETED, DROPPED, REFUSED, FAILED = "completed", "dropped", "refused", "failed"
"""DROPPED: the user disconnected without notice."""

_TRY_LATER = 1013
_UNAVAILABLE = 503
# Between the end of a conversation and the next one.
_PAUSE_S = 0.2
_SETUP_S = 30.0


class ChurnUsers:
    """`users` at once; each holds conversations of `shortest` to `longest` seconds, one after the other."""

    def __init__(
        self, plan: Plan, speech: Speech, users: int, *, shortest: float, longest: float, drop: float, seed: int
    ) -> None:
        """`drop`: share of conversations whose user disconnects without notice."""
        self._plan = plan
        self._users = users
        self._speech = speech
        self._lengths = shortest, longest
        self._drop = drop
        self._draw = random.Random(seed)
        self.outcomes: Counter[tuple[str, str]] = Counter()
        """Conversations by API and outcome."""
        self.failures: list[str] = []

    async def run(self, seconds: float) -> None:
        """Start conversations for `seconds`; return when the last one is over."""
        until = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for user in range(self._users):
                group.create_task(self._one_after_another(user, until))

    def total(self, outcome: str) -> int:
        """Conversations with this outcome, over all APIs."""
        return sum(number for (_, kind), number in self.outcomes.items() if kind == outcome)

    async def _one_after_another(self, user: int, until: float) -> None:
        seed = user
        while (left := until - time.monotonic()) > 0:
            seed += self._users
            api = self._draw.choice(APIS)
            seconds = min(self._draw.uniform(*self._lengths), left)
            drops = self._draw.random() < self._drop
            try:
                outcome = await self._converse_once(api, seed, seconds, drops)
            except Refused:
                outcome = REFUSED
            except InvalidStatus as error:
                outcome = REFUSED if error.response.status_code == _UNAVAILABLE else FAILED
                if outcome == FAILED:
                    self.failures.append(f"{api}: {error}")
            except (CallFailed, httpx.HTTPError, WebSocketException, OSError, TimeoutError) as error:
                outcome = FAILED
                self.failures.append(f"{api}: {type(error).__name__}: {error}")
            self.outcomes[api, outcome] += 1
            await asyncio.sleep(_PAUSE_S)

    async def _converse_once(self, api: str, seed: int, seconds: float, drops: bool) -> str:
        if api == "rest":
            await self._respond(seed, seconds, drops)
        elif api == "chat":
            await self._chat(seed, seconds, drops)
        else:
            kind = GrpcClient if api == "grpc" else WebSocketClient
            await self._converse(kind(self._plan, self._speech, seed, lambda _index, _size: None), seconds, drops)
        return DROPPED if drops else COMPLETED

    async def _converse(self, client: LiveClient, seconds: float, drops: bool) -> None:
        try:
            async with asyncio.timeout(_SETUP_S):
                await client.open()
            for u in range(_frames(seconds)):
                await client.send(u)
                await asyncio.sleep(FRAME_SECONDS)
            if not drops:
                async with asyncio.timeout(_SETUP_S):
                    await client.finish()
        finally:
            client.close()

    async def _chat(self, seed: int, seconds: float, drops: bool) -> None:
        address = f"{self._plan.server.replace('http', 'ws', 1)}/api/chat?{urlencode({'seed': seed})}"
        key = {"Authorization": f"Bearer {self._plan.api_key}"} if self._plan.api_key else None
        async with connect(address, compression=None, proxy=None, additional_headers=key) as client:
            receiving = asyncio.create_task(_receive(client))
            try:
                encoder = OggOpusEncoder()
                frames = _frames(seconds)
                for u in range(frames):
                    await client.send(b"\x01" + encoder.encode(np.frombuffer(self._speech.frame(u), np.int16)))
                    await asyncio.sleep(FRAME_SECONDS)
                if drops:
                    client.transport.abort()
                else:
                    await client.send(b"\x01" + encoder.finish())
            except ConnectionClosed:
                pass
            async with asyncio.timeout(_SETUP_S):
                await receiving
        if client.close_code == _TRY_LATER:
            raise Refused
        if not drops and client.close_code != 1000:
            raise CallFailed(f"closed with {client.close_code}: {client.close_reason}")

    async def _respond(self, seed: int, seconds: float, drops: bool) -> None:
        """Send requests for `seconds` and read each response as fast as it arrives."""
        headers = {"content-type": "application/json", "accept": "audio/wav"}
        if self._plan.api_key:
            headers["authorization"] = f"Bearer {self._plan.api_key}"
        until = time.monotonic() + seconds
        async with httpx.AsyncClient(timeout=_SETUP_S, trust_env=False) as client:
            while True:
                body = self._speech.respond_body(seed)
                async with client.stream(
                    "POST", f"{self._plan.server}/v1/respond", content=body, headers=headers
                ) as response:
                    if response.status_code == _UNAVAILABLE:
                        raise Refused
                    if not response.is_success:
                        raise CallFailed(f"HTTP status {response.status_code}")
                    limit = self._draw.randint(1, 40) * 2 * FRAME_SIZE
                    got = 0
                    async for piece in response.aiter_raw():
                        got += len(piece)
                        if drops and got > limit:
                            return
                if time.monotonic() > until:
                    return
                await asyncio.sleep(self._draw.random())


async def _receive(client: ClientConnection) -> None:
    with suppress(ConnectionClosed):
        while True:
            await client.recv()


def _frames(seconds: float) -> int:
    return max(1, round(seconds / FRAME_SECONDS))
