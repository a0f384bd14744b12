"""The process that holds the calls of a Locust worker on one event loop: `python -m loadtest.users`.

Locust writes lines of JSON to its stdin. The first is the plan. {"call": number, "user": seed, "api": ..., "seconds":
...} begins a call, {"stop": number} ends one, {"start": true} lets the calls start that wait for each other. At the end
of stdin all calls end. Events come from its stdout: {"event": "ready" | "frames" | "response" | "done", "call": ...}
while calls last, then {"event": "record", "record": ...} for each, and {"event": "over", ...}. It is a process of its
own because Locust's gevent and asyncio do not share one well, and because statistics must not delay the pacing.
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

from loadtest import rest
from loadtest.conversation import Conversation
from loadtest.pacing import Start
from loadtest.plan import Plan
from loadtest.record import Api, Record
from loadtest.speech import Speech

LEAD_SECONDS = 0.5
REPORT_SECONDS = 1.0

Emit = Callable[[dict[str, Any]], None]


class Users:
    """All calls of one run."""

    def __init__(self, plan: Plan, emit: Emit, clock: Callable[[], float] = time.monotonic) -> None:
        self._plan = plan
        self._emit = emit
        self._clock = clock
        self._speech = Speech.load(Path(plan.recording))
        self._records: list[Record] = []
        self._conversations: dict[int, Conversation] = {}
        self._reported: dict[int, int] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._began_at: float | None = None
        self._cpu = 0.0
        self._start = Start(plan.starts, LEAD_SECONDS, clock, self._on_start)

    async def run(self, commands: asyncio.Queue[dict[str, Any] | None]) -> None:
        """Follow `commands` until None; then end all calls and emit the records."""
        reporting = asyncio.create_task(self._report())
        while (command := await commands.get()) is not None:
            if "call" in command:
                self._begin(command["call"], command["user"], Api(command["api"]), command["seconds"])
            elif "stop" in command:
                self._stop(command["stop"])
            else:
                self._start.close()
        for call in [*self._conversations, *self._tasks]:
            self._stop(call)
        if self._tasks:
            await asyncio.wait(self._tasks.values())
        reporting.cancel()
        used = time.process_time() - self._cpu
        for record in self._records:
            self._emit({"event": "record", "record": record.to_json()})
        self._emit({"event": "over", "began": self._began_at, "cpu_seconds": used})

    def _begin(self, call: int, user: int, api: Api, seconds: float) -> None:
        if api is Api.REST:
            running = self._request(call, user, seconds)
        else:
            conversation = Conversation(api, user, seconds, self._plan, self._speech, self._start, self._clock)
            self._conversations[call] = conversation
            self._records.append(conversation.record)
            running = self._converse(call, conversation)
        self._tasks[call] = task = asyncio.create_task(running)
        task.add_done_callback(lambda _: self._tasks.pop(call))

    def _stop(self, call: int) -> None:
        if call in self._conversations:
            self._conversations[call].stop()
        elif call in self._tasks:
            self._tasks[call].cancel()

    async def _request(self, call: int, user: int, seconds: float) -> None:
        try:
            async for record in rest.run_user(user, seconds, self._plan, self._speech, self._start, self._clock):
                self._records.append(record)
                self._emit({"event": "response", "call": call, **_outcome(record), "ms": _ms(record.total)})
        finally:
            self._emit({"event": "done", "call": call})

    async def _converse(self, call: int, conversation: Conversation) -> None:
        record = conversation.record
        await conversation.run(lambda: self._emit({"event": "ready", "call": call, "ms": _ms(record.setup)}))
        self._emit_frames(call, record)
        details = {"first_audio_ms": _ms(record.first_audio), "missing": record.expected - record.frames}
        self._emit({"event": "done", "call": call, **_outcome(record), **details})

    def _on_start(self) -> None:
        self._began_at = self._clock()
        self._cpu = time.process_time()
        # A full collection of what the start allocated would delay the users.
        gc.collect()
        gc.freeze()

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            for call in self._tasks:
                if call in self._conversations:
                    self._emit_frames(call, self._conversations[call].record)

    def _emit_frames(self, call: int, record: Record) -> None:
        reported = self._reported.get(call, 0)
        latencies = record.latencies_from(reported)
        if latencies:
            self._reported[call] = reported + len(latencies)
            self._emit({"event": "frames", "call": call, "ms": [round(s * 1000, 2) for s in latencies]})


def _outcome(record: Record) -> dict[str, Any]:
    return {"outcome": record.outcome.value, "reason": record.reason}


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


def _write(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


async def main() -> None:
    """Run the plan until stdin is closed."""
    commands: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
    stdin = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    plan = Plan.from_json((await stdin.readline()).decode())
    running = asyncio.create_task(Users(plan, _write).run(commands))
    async for line in stdin:
        commands.put_nowait(json.loads(line))
    commands.put_nowait(None)
    await running


if __name__ == "__main__":
    asyncio.run(main())
