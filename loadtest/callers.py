"""The process in which all callers speak, on one event loop: `python -m loadtest.callers PLAN`.

Locust tells it on stdin who calls when, a JSON object per line; it tells Locust on stdout what became of it:
{"event": "ready" | "frames" | "done", "user": ..., ...}. It is a process of its own because Locust's gevent and asyncio
do not share one well, and because pacing should not wait for statistics.
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
from loadtest.question import Question
from loadtest.record import Face, Record

LEAD_SECONDS = 0.5
REPORT_SECONDS = 1.0

Tell = Callable[[dict[str, Any]], None]


class Callers:
    """Everybody who calls in one run."""

    def __init__(self, plan: Plan, tell: Tell, clock: Callable[[], float] = time.monotonic) -> None:
        self._plan = plan
        self._tell = tell
        self._clock = clock
        self._question = Question.load(Path(plan.recording))
        self._start = Start(plan.users, LEAD_SECONDS, clock, self._began)
        self._records: list[Record] = []
        self._told: dict[int, int] = {}
        self._began_at: float | None = None
        self._cpu = 0.0

    async def run(self, dials: asyncio.Queue[tuple[int, Face]]) -> None:
        """Let callers call as `dials` says, until all `plan.users` have; then write the records to `plan.out`."""
        reporting = asyncio.create_task(self._report())
        async with asyncio.TaskGroup() as group:
            for _ in range(self._plan.users):
                user, face = await dials.get()
                group.create_task(self._call(user, face))
        reporting.cancel()
        used = time.process_time() - self._cpu
        whole = {
            "began": self._began_at,
            "client_cpu_seconds": used,
            "records": [record.to_json() for record in self._records],
        }
        self._plan.out_path.write_text(json.dumps(whole))

    async def _call(self, user: int, face: Face) -> None:
        if face is Face.REST:
            mine: list[Record] = []
            async for record in rest.ask(self._plan, self._question, user, self._start, self._clock):
                mine.append(record)
                self._tell({"event": "answer", "user": user, **_outcome(record), "ms": _ms(record.total)})
            self._records += mine
            self._tell({"event": "done", "user": user})
            return
        record = conversation.record_of(self._plan, user, face)
        self._records.append(record)
        await conversation.hold(
            record,
            self._plan,
            self._question,
            self._start,
            self._clock,
            lambda: self._tell({"event": "ready", "user": user, "ms": _ms(record.setup)}),
        )
        self._tell_frames(record)
        told = {"first_audio_ms": _ms(record.first_audio), "missing": record.expected - record.frames}
        self._tell({"event": "done", "user": user, **_outcome(record), **told})

    def _began(self, moment: float) -> None:
        self._began_at = moment
        self._cpu = time.process_time()
        # A collection of everything that was made for the start would make the callers late.
        gc.collect()
        gc.freeze()

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            for record in self._records:
                self._tell_frames(record)

    def _tell_frames(self, record: Record) -> None:
        told = self._told.get(record.user, 0)
        latencies = record.latencies_from(told)
        if latencies and record.face is not Face.REST:
            self._told[record.user] = told + len(latencies)
            self._tell({"event": "frames", "user": record.user, "ms": [round(s * 1000, 2) for s in latencies]})


def _outcome(record: Record) -> dict[str, Any]:
    return {"outcome": record.outcome.value, "reason": record.reason}


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


def _say(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


async def main(plan: Plan) -> None:
    """Run `plan`; ends early when stdin does."""
    dials: asyncio.Queue[tuple[int, Face]] = asyncio.Queue()
    stdin = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    running = asyncio.create_task(Callers(plan, _say).run(dials))

    async def listen() -> None:
        async for line in stdin:
            dial = json.loads(line)
            dials.put_nowait((dial["user"], Face(dial["face"])))

    listening = asyncio.create_task(listen())
    await asyncio.wait([running, listening], return_when=asyncio.FIRST_COMPLETED)
    listening.cancel()
    # Whoever told the callers to call is gone: nobody will read what they would say.
    if not running.done():
        running.cancel()
    await asyncio.wait([running, listening])
    running.result()


if __name__ == "__main__":
    asyncio.run(main(Plan.of_json(sys.argv[1])))
