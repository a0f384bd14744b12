"""One live call: connect, wait for the start, send frames, and record what is received."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from loadtest.apis import LiveClient, OnFrame
from loadtest.apis.grpc import GrpcClient
from loadtest.apis.live import LiveApiClient
from loadtest.apis.realtime import RealtimeClient
from loadtest.apis.twilio import TwilioClient
from loadtest.apis.websocket import WebSocketClient
from loadtest.pacing import Clock, Start, send_frames
from loadtest.plan import Plan
from loadtest.record import FRAME_SECONDS, Api, CallFailed, Malformed, Outcome, Record, Refused
from loadtest.speech import Speech
from loadtest.stats import expected_frames

CLIENTS: dict[Api, Callable[[Plan, Speech, int, OnFrame], LiveClient]] = {
    Api.GRPC: GrpcClient,
    Api.WEBSOCKET: WebSocketClient,
    Api.LIVE: LiveApiClient,
    Api.REALTIME: RealtimeClient,
    Api.TWILIO: TwilioClient,
}
"""The client of each live API."""


class Conversation:
    """A live call of `seconds`. The result is in `record`; all frames of its time are expected, whatever happens."""

    def __init__(
        self, api: Api, user: int, seconds: float, plan: Plan, speech: Speech, start: Start, clock: Clock
    ) -> None:
        """`user` is the seed."""
        self.record = Record(api, user, expected_frames(seconds), began=time.time())
        self._seconds = seconds
        self._plan = plan
        self._speech = speech
        self._start = start
        self._number = start.join()
        self._clock = clock
        self._moment: float | None = None
        self._limit: asyncio.Timeout | None = None
        self._running: asyncio.Task[None] | None = None
        self._over = False

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Hold the call. Raises nothing for what a server may do."""
        record, plan, clock = self.record, self._plan, self._clock
        receiver = _Receiver(record, clock)
        client = CLIENTS[record.api](plan, self._speech, record.user, receiver.on_frame)
        receiver.frame_bytes = client.frame_bytes
        self._running = asyncio.current_task()
        try:
            if record.outcome is Outcome.STOPPED:
                return
            began = clock()
            async with asyncio.timeout(plan.setup):
                await client.open()
            record.setup = clock() - began
            on_ready()
            moment = await self._start.arrive(self._number)
            self._moment = receiver.start = moment
            record.began = time.time() + moment - clock()
            until = moment + self._seconds
            async with asyncio.timeout_at(self._in_loop_time(until + plan.drain)) as self._limit:
                await send_frames(record, client.send, moment, until, clock)
                record.dropped, record.late_at_server = await client.finish()
            record.outcome = Outcome.COMPLETED
        except Refused as refused:
            record.outcome, record.reason = Outcome.REFUSED, str(refused)
        except TimeoutError:
            over = f"not over {plan.drain:g} s after the last frame was due"
            record.reason = "not ready in time" if self._moment is None else over
        except CallFailed as error:
            record.reason = f"{type(error).__name__}: {error}"
        except asyncio.CancelledError:
            if record.outcome is not Outcome.STOPPED:
                raise
        finally:
            self._over = receiver.closed = True
            client.close()
            if self._moment is None:
                self._start.withdraw(self._number)
        if record.received and record.setup is not None:
            record.first_audio = record.setup + record.received[0]

    def stop(self) -> None:
        """End the time of the call now. It ends at once if it has not begun to send; if it is over, frames that would
        have been due later are not missing."""
        if self._over or self._limit is not None:
            due = max(0, int((time.time() - self.record.began) / FRAME_SECONDS) + 1)
            if due < self.record.expected:
                self.record.expected = due
                if self._limit is not None and not self._over:
                    self._limit.reschedule(self._in_loop_time(self._clock() + self._plan.drain))
            return
        self.record.outcome, self.record.expected = Outcome.STOPPED, 0
        if self._running is not None:
            self._running.cancel()

    def _in_loop_time(self, moment: float) -> float:
        return asyncio.get_running_loop().time() + moment - self._clock()


class _Receiver:
    """Records when agent frames are received."""

    def __init__(self, record: Record, clock: Clock) -> None:
        self._record = record
        self._clock = clock
        self._next = 0
        self.frame_bytes = 0
        self.start: float | None = None
        self.closed = False

    def on_frame(self, index: int, size: int) -> None:
        """Frame `index` of `size` bytes was received. Raises Malformed if the protocol does not allow it."""
        if self.closed:
            return
        if index != self._next or size != self.frame_bytes:
            raise Malformed(f"frame {index} of {size} bytes, expected frame {self._next} of {self.frame_bytes}")
        self._next += 1
        if index == 0:
            return
        if self.start is None or index > len(self._record.sent):
            raise Malformed(f"frame {index} before the user frame that it answers")
        self._record.received.append(self._clock() - self.start)
        self._record.frames += 1
        self._record.bytes += size
