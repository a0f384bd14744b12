"""Clients that disconnect at random points of the protocol leave nothing behind on the real service."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.api.grpc.personaplex.v1 import personaplex_pb2_grpc
from tests.effort import effort
from tests.end_to_end.conftest import Service
from tests.end_to_end.vanishing import PCM, Clients, random_visits
from tests.series import total

SLOTS = 8
VISITS = effort(300, 2000)
# Slots of the clients that disconnect. The others are for the client that stays and for slots not yet released.
CLIENTS = 5


def conversation(service: Service, together: Callable[[], object] = lambda: None) -> NDArray[np.int64]:
    """Return the tokens of a complete session [frames, 9]. Calls `together` after the first answer."""
    begun = threading.Event()

    def messages() -> Iterator[pb.ConverseRequest]:
        yield pb.ConverseRequest(start=pb.Start(sampling=pb.Sampling(seed=11), include_tokens=True))
        # After one frame, a row of every model is taken.
        yield pb.ConverseRequest(audio=PCM[0])
        begun.wait(15)
        for pcm in PCM[1:8]:
            yield pb.ConverseRequest(audio=pcm)
        yield pb.ConverseRequest(end=pb.End())

    frames = []
    with grpc.insecure_channel(service.grpc_target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        try:
            for message in personaplex_pb2_grpc.PersonaPlexStub(channel).Converse(messages(), timeout=15):
                if message.WhichOneof("message") == "audio":
                    frames.append(message.audio)
                    if message.audio.index == 1:
                        together()
                        begun.set()
        finally:
            begun.set()
    return np.array([[frame.text_token, *frame.agent_codes] for frame in frames])


class Held:
    """What the process and the gateway in it hold now."""

    def __init__(self, service: Service) -> None:
        gc.collect()
        self.taken = service.app.state.runtime.admission.taken
        self.tasks = service.tasks()
        # Idle connections to Triton stay open; they are counted separately.
        self.to_triton = len(service.app.state.runtime.backend._http._idle)
        self.files = psutil.Process().num_fds() - self.to_triton
        self.releasing = len(service.app.state.runtime.leases._releasing)
        self.registered = len(service.app.state.runtime.sessions._registered)
        self.kept = len(service.app.state.runtime.turn_sessions._by_id)

    def no_more_than(self, before: Held) -> bool:
        return (
            self.taken == self.releasing == self.registered == self.kept == 0
            and len(self.tasks) <= len(before.tasks)
            and self.files <= before.files
        )

    def __repr__(self) -> str:
        return ", ".join(f"{name}: {value}" for name, value in vars(self).items())


def settled(service: Service, before: Held) -> Held:
    """Return what is held once all sessions have ended."""
    deadline = time.monotonic() + 15
    while not (held := Held(service)).no_more_than(before):
        assert time.monotonic() < deadline, f"left behind: {held}\nbefore: {before}"
        time.sleep(0.1)
    return held


@pytest.mark.effort
def test_disconnected_clients_leave_nothing_behind(tiny_service: Service) -> None:
    service = tiny_service
    metrics = service.app.state.runtime.metrics
    expected = conversation(service)
    assert expected.shape == (9, 9)

    def ended(reason: str) -> float:
        return total(metrics, "personaplex_ended_total", reason=reason)

    async def disconnect_many() -> tuple[Held, int]:
        async def undisturbed() -> int:
            """Hold complete sessions, one after the other, and compare their tokens."""
            runtime = 0
            while not over.is_set():
                try:
                    tokens = await asyncio.to_thread(conversation, service)
                except grpc.RpcError as error:
                    # Slots of disconnected clients may not be free yet.
                    if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                        raise
                    await asyncio.sleep(0.05)
                else:
                    assert np.array_equal(tokens, expected)
                    runtime += 1
            return runtime

        clients = Clients(service, CLIENTS)
        await clients.all(random_visits(100, seed=1))
        service.wait_until_free()
        # Clients of this process release their resources.
        await asyncio.sleep(0.5)
        before = Held(service)
        over = asyncio.Event()
        staying = asyncio.create_task(undisturbed())
        await clients.all(random_visits(VISITS, seed=2))
        over.set()
        assert await staying > effort(0, 5)
        assert clients.gone == VISITS + 100
        after = await asyncio.to_thread(settled, service, before)
        return after, clients.refused

    began, vanished = time.monotonic(), ended("disconnected")
    after, refused = asyncio.run(disconnect_many())
    took = time.monotonic() - began
    vanished = ended("disconnected") - vanished
    print(f"{VISITS} clients in {took:.1f} s: {vanished:.0f} left a session, {refused} were refused")
    assert vanished > VISITS / 4, "too few of them had a session"
    assert ended("engine") == ended("error") == 0
    # A frame has at most one call of each conversation under way, a start or end one per model.
    assert after.to_triton <= 4 * SLOTS

    # A sequence that has not ended holds its row: one of these would wait inside Triton, and the others for it.
    barrier = threading.Barrier(SLOTS, timeout=10)
    with ThreadPoolExecutor(SLOTS) as pool:
        answers = list(pool.map(lambda _: conversation(service, barrier.wait), range(SLOTS)))
    assert all(np.array_equal(tokens, expected) for tokens in answers)
    service.wait_until_free()
