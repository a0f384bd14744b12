"""A REST user: send a recording, receive the response, and repeat at the rate of real time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import httpx

from loadtest.pacing import Clock, Start
from loadtest.plan import Plan, address
from loadtest.record import FRAME_SECONDS, Api, Outcome, Record
from loadtest.speech import FRAME_SIZE, Speech

HEADERS = {"content-type": "application/json", "accept": "audio/wav"}
_WAV_HEADER = 44
_UNAVAILABLE = 503


async def run_user(
    user: int, length: float, plan: Plan, speech: Speech, start: Start, clock: Clock
) -> AsyncIterator[Record]:
    """Yield one record per request, as many as fit into `length` seconds, one after the other; `user` is the seed.

    The next request is due when the last one's recording would have been played, or at once if its response took
    longer. A request for which no time is left is not sent, and its frames are missing.
    """
    number_of_call = start.join()
    seconds = len(speech.frames) * FRAME_SECONDS
    headers = HEADERS | ({"authorization": f"Bearer {plan.api_key}"} if plan.api_key else {})
    verify = address(plan.server).tls or False
    async with httpx.AsyncClient(
        base_url=plan.server, headers=headers, timeout=plan.setup, trust_env=False, verify=verify
    ) as client:
        moment = await start.arrive(number_of_call)
        ends = moment + length
        due = moment
        for number in range(max(1, int(length / seconds + 1e-6))):
            await asyncio.sleep(max(0.0, due - clock()))
            record = Record(Api.REST, user, len(speech.frames), began=time.time())
            now = clock()
            if now >= ends + plan.drain:
                record.reason = "no time was left for this request"
            else:
                record.sent.extend([now - moment] * record.expected)
                record.late.append(now - due)
                try:
                    async with asyncio.timeout(max(ends + plan.drain, now + seconds) - now):
                        await respond(client, speech.respond_body(user * 1000 + number), record, clock)
                except TimeoutError:
                    record.reason = "the response was not complete in time"
                except httpx.HTTPError as error:
                    record.reason = f"{type(error).__name__}: {error}"
            due = max(due + seconds, clock())
            yield record


async def respond(client: httpx.AsyncClient, body: bytes, record: Record, clock: Clock) -> None:
    """Send one request and receive its response; the result is in `record`. Raises httpx.HTTPError."""
    began = clock()
    async with client.stream("POST", "/v1/respond", content=body) as response:
        if response.status_code != httpx.codes.OK:
            problem = (await response.aread()).decode(errors="replace")
            record.reason = f"HTTP {response.status_code}: {problem[:200]}"
            if response.status_code == _UNAVAILABLE:
                record.outcome = Outcome.REFUSED
            return
        async for piece in response.aiter_raw():
            record.bytes += len(piece)
            if record.first_audio is None and record.bytes > _WAV_HEADER:
                record.first_audio = clock() - began
    record.frames = (record.bytes - _WAV_HEADER) // (2 * FRAME_SIZE)
    record.total = clock() - began
    if record.bytes != _WAV_HEADER + record.expected * 2 * FRAME_SIZE:
        record.reason = f"Malformed: {record.bytes} bytes of WAV for {record.expected} frames"
    else:
        record.outcome = Outcome.COMPLETED
