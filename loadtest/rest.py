"""A REST caller: asks a recording's worth, takes the answer, and asks again when as much time has passed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx

from loadtest.pacing import Clock, Start
from loadtest.plan import Plan
from loadtest.question import FRAME_SIZE, Question
from loadtest.record import FRAME_SECONDS, Face, Outcome, Record

HEADERS = {"content-type": "application/json", "accept": "audio/wav"}
_WAV_HEADER = 44
_UNAVAILABLE = 503


async def ask(plan: Plan, question: Question, user: int, start: Start, clock: Clock) -> AsyncIterator[Record]:
    """One record per question, as many as the fixed time holds, one after the other.

    The next question is due when the last one's recording would have been spoken, or at once if its answer took
    longer; questions for which no time was left are not asked, and their frames are missing.
    """
    seconds = len(question.frames) * FRAME_SECONDS
    headers = HEADERS | ({"authorization": f"Bearer {plan.api_key}"} if plan.api_key else {})
    async with httpx.AsyncClient(base_url=plan.server, headers=headers, timeout=plan.setup, trust_env=False) as client:
        moment = await start.arrive() + plan.offset(user)
        ends = moment + plan.seconds
        due = moment
        for number in range(max(1, int(plan.seconds / seconds + 1e-6))):
            await asyncio.sleep(max(0.0, due - clock()))
            record = Record(Face.REST, user, len(question.frames))
            now = clock()
            if now >= ends + plan.drain:
                record.reason = "no time was left to ask"
            else:
                record.sent.extend([now - moment] * record.expected)
                record.late.append(now - due)
                try:
                    async with asyncio.timeout(max(ends + plan.drain, now + seconds) - now):
                        await respond(client, question.respond_body(user * 1000 + number), record, clock)
                except TimeoutError:
                    record.reason = "the answer was not over in time"
                except httpx.HTTPError as error:
                    record.reason = f"{type(error).__name__}: {error}"
            due = max(due + seconds, clock())
            yield record


async def respond(client: httpx.AsyncClient, body: bytes, record: Record, clock: Clock) -> None:
    """Send one recording and receive its answer; the outcome is in `record`. Raises httpx.HTTPError."""
    asked = clock()
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
                record.first_audio = clock() - asked
    record.frames = (record.bytes - _WAV_HEADER) // (2 * FRAME_SIZE)
    record.total = clock() - asked
    if record.bytes != _WAV_HEADER + record.expected * 2 * FRAME_SIZE:
        record.reason = f"Malformed: {record.bytes} bytes of WAV for {record.expected} frames"
    else:
        record.outcome = Outcome.COMPLETED
