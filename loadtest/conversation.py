"""One live user: connect, wait for the common start, send frames, and record what is received."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from loadtest.apis import LiveClient, OnFrame
from loadtest.apis.grpc import GrpcClient
from loadtest.apis.live import LiveApiClient
from loadtest.apis.realtime import RealtimeClient
from loadtest.apis.twilio import TwilioClient
from loadtest.apis.websocket import WebSocketClient
from loadtest.pacing import Clock, Start, send_frames
from loadtest.plan import Plan
from loadtest.record import Api, CallFailed, Malformed, Outcome, Record, Refused
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


def new_record(plan: Plan, user: int, api: Api) -> Record:
    """The initial record of a live user. All frames of the fixed time are expected, whatever happens."""
    return Record(api, user, expected_frames(plan.seconds))


async def converse(
    record: Record,
    plan: Plan,
    speech: Speech,
    start: Start,
    clock: Clock,
    on_ready: Callable[[], None],
) -> None:
    """Run the conversation of `record.user`; the result is in `record`. Raises nothing for what a server may do."""
    receiver = _Receiver(record, clock)
    client = CLIENTS[record.api](plan, speech, record.user, receiver.on_frame)
    receiver.frame_bytes = client.frame_bytes
    waiting = True
    try:
        began = clock()
        async with asyncio.timeout(plan.setup):
            await client.open()
        record.setup = clock() - began
        on_ready()
        waiting = False
        moment = await start.arrive()
        offset = plan.offset(record.user)
        receiver.start = moment
        until = moment + plan.seconds
        async with asyncio.timeout_at(asyncio.get_running_loop().time() + until + offset + plan.drain - clock()):
            await send_frames(record, client.send, moment, offset, until, clock)
            record.dropped, record.late_at_server = await client.finish()
        record.outcome = Outcome.COMPLETED
    except Refused as refused:
        record.outcome, record.reason = Outcome.REFUSED, str(refused)
    except TimeoutError:
        record.reason = "not ready in time" if waiting else f"not over {plan.drain:g} s after the last frame was due"
    except CallFailed as error:
        record.reason = f"{type(error).__name__}: {error}"
    finally:
        receiver.closed = True
        client.close()
        if waiting:
            start.withdraw()
    if record.received and record.setup is not None:
        record.first_audio = record.setup + record.received[0] - plan.offset(record.user)


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
