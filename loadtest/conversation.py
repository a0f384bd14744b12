"""One live caller: gets through, waits for the common start, speaks, and notes down what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from loadtest.faces import Heard, Line
from loadtest.faces.grpc import GrpcLine
from loadtest.faces.websocket import WebSocketLine
from loadtest.figures import expected_frames
from loadtest.pacing import Clock, Start, speak
from loadtest.plan import Plan
from loadtest.question import FRAME_SIZE, Question
from loadtest.record import CallFailed, Face, Malformed, Outcome, Record, Refused

BYTES_PER_FRAME = 2 * FRAME_SIZE


def record_of(plan: Plan, user: int, face: Face) -> Record:
    """What a live caller starts with: all frames of the fixed time are expected, whatever happens."""
    return Record(face, user, expected_frames(plan.seconds))


async def hold(
    record: Record,
    plan: Plan,
    question: Question,
    start: Start,
    clock: Clock,
    on_ready: Callable[[], None],
) -> None:
    """The whole conversation of `record.user`; how it went is in `record`. Never raises for what a server may do."""
    ear = _Reader(record, clock)
    line = _line(record, plan, question, ear.heard)
    waiting = True
    try:
        dialled = clock()
        async with asyncio.timeout(plan.setup):
            await line.open()
        record.setup = clock() - dialled
        on_ready()
        waiting = False
        moment = await start.arrive()
        offset = plan.offset(record.user)
        ear.moment = moment
        until = moment + plan.seconds
        async with asyncio.timeout_at(asyncio.get_running_loop().time() + until + offset + plan.drain - clock()):
            await speak(record, line.send, moment, offset, until, clock)
            record.dropped, record.late_at_server = await line.finish()
        record.outcome = Outcome.COMPLETED
    except Refused as refused:
        record.outcome, record.reason = Outcome.REFUSED, str(refused)
    except TimeoutError:
        record.reason = "not ready in time" if waiting else f"not over {plan.drain:g} s after the last frame was due"
    except CallFailed as error:
        record.reason = f"{type(error).__name__}: {error}"
    finally:
        ear.over = True
        line.close()
        if waiting:
            start.leave()
    if record.came and record.setup is not None:
        record.first_audio = record.setup + record.came[0] - plan.offset(record.user)


class _Reader:
    """Notes down when agent frames come."""

    def __init__(self, record: Record, clock: Clock) -> None:
        self._record = record
        self._clock = clock
        self._next = 0
        self.moment: float | None = None
        self.over = False

    def heard(self, index: int, size: int) -> None:
        if self.over:
            return
        if index != self._next or size != BYTES_PER_FRAME:
            raise Malformed(f"frame {index} of {size} bytes where frame {self._next} of {BYTES_PER_FRAME} was due")
        self._next += 1
        if index == 0:
            return
        if self.moment is None or index > len(self._record.sent):
            raise Malformed(f"frame {index} before the user's frame that it answers")
        self._record.came.append(self._clock() - self.moment)
        self._record.frames += 1
        self._record.bytes += size


def _line(record: Record, plan: Plan, question: Question, heard: Heard) -> Line:
    kind = GrpcLine if record.face is Face.GRPC else WebSocketLine
    return kind(plan, question, record.user, heard)
