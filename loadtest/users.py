"""The process that runs all users of a load test on one event loop: `python -m loadtest.users PLAN`.

Locust writes one JSON object per line to its stdin to start a user, {"user": ..., "api": ...}; it writes events to its
stdout: {"event": "ready" | "frames" | "response" | "done", "user": ..., ...}. It is a process of its own because
Locust's gevent and asyncio do not share one well, and because statistics must not delay the pacing.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loadtest import conversation, rest
from loadtest.pacing import Start
from loadtest.plan import Plan
from loadtest.record import Api, Record
from loadtest.speech import Speech

LEAD_SECONDS = 0.5
REPORT_SECONDS = 1.0

Emit = Callable[[dict[str, Any]], None]


class Users:
    """All users of one run."""

    def __init__(self, plan: Plan, emit: Emit, clock: Callable[[], float] = time.monotonic) -> None:
        self._plan = plan
        self._emit = emit
        self._clock = clock
        self._speech = Speech.load(Path(plan.recording))
        self._start = Start(plan.users, LEAD_SECONDS, clock, self._on_start)
        self._records: list[Record] = []
        self._reported: dict[int, int] = {}
        self._began_at: float | None = None
        self._cpu = 0.0

    async def run(self, starts: asyncio.Queue[tuple[int, Api]]) -> None:
        """Start users as `starts` requests, `plan.users` in all; when all are done, write the records to `plan.out`."""
        reporting = asyncio.create_task(self._report())
        async with asyncio.TaskGroup() as group:
            for _ in range(self._plan.users):
                user, api = await starts.get()
                group.create_task(self._run_user(user, api))
        reporting.cancel()
        used = time.process_time() - self._cpu
        content = {
            "began": self._began_at,
            "client_cpu_seconds": used,
            "records": [record.to_json() for record in self._records],
        }
        self._plan.out_path.write_text(json.dumps(content))

    async def _run_user(self, user: int, api: Api) -> None:
        if api is Api.REST:
            responses: list[Record] = []
            async for record in rest.run_user(self._plan, self._speech, user, self._start, self._clock):
                responses.append(record)
                self._emit({"event": "response", "user": user, **_outcome(record), "ms": _ms(record.total)})
            self._records += responses
            self._emit({"event": "done", "user": user})
            return
        record = conversation.new_record(self._plan, user, api)
        self._records.append(record)
        await conversation.converse(
            record,
            self._plan,
            self._speech,
            self._start,
            self._clock,
            lambda: self._emit({"event": "ready", "user": user, "ms": _ms(record.setup)}),
        )
        self._emit_frames(record)
        details = {"first_audio_ms": _ms(record.first_audio), "missing": record.expected - record.frames}
        self._emit({"event": "done", "user": user, **_outcome(record), **details})

    def _on_start(self, moment: float) -> None:
        self._began_at = moment
        self._cpu = time.process_time()
        # A full collection of what the start allocated would delay the users.
        gc.collect()
        gc.freeze()

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            for record in self._records:
                self._emit_frames(record)

    def _emit_frames(self, record: Record) -> None:
        reported = self._reported.get(record.user, 0)
        latencies = record.latencies_from(reported)
        if latencies and record.api is not Api.REST:
            self._reported[record.user] = reported + len(latencies)
            self._emit({"event": "frames", "user": record.user, "ms": [round(s * 1000, 2) for s in latencies]})


def _outcome(record: Record) -> dict[str, Any]:
    return {"outcome": record.outcome.value, "reason": record.reason}


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


def _write(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


async def main(plan: Plan) -> None:
    """Run `plan`; stop early when stdin is closed."""
    starts: asyncio.Queue[tuple[int, Api]] = asyncio.Queue()
    stdin = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    running = asyncio.create_task(Users(plan, _write).run(starts))

    async def read() -> None:
        async for line in stdin:
            start = json.loads(line)
            starts.put_nowait((start["user"], Api(start["api"])))

    reading = asyncio.create_task(read())
    await asyncio.wait([running, reading], return_when=asyncio.FIRST_COMPLETED)
    reading.cancel()
    # Locust has ended: no process reads the events.
    if not running.done():
        running.cancel()
    await asyncio.wait([running, reading])
    running.result()


if __name__ == "__main__":
    asyncio.run(main(Plan.from_json(sys.argv[1])))
