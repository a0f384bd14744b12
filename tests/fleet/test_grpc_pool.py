"""To gRPC clients a fleet is one pool: no call is refused while a pod has a free slot, whatever happens to others."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest

from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.api.grpc.personaplex.v1.personaplex_pb2_grpc import PersonaPlexStub
from gateway.client.grpc_pool import ATTEMPTS, CHANNEL_OPTIONS
from tests.fleet.calls import GRPC_APIS, grpc_call
from tests.fleet.fleet import HOST, fleet
from tests.fleet.scenario import CALLS, SLOTS, Make, Scenario
from tests.gateway.conftest import shared_models

__all__ = ["shared_models"]

AGE = 1.0
"""Seconds after which gRPC clients connect again."""


@pytest.mark.long
@pytest.mark.timeout(3600)
async def test_grpc_clients_refuse_no_call_while_a_slot_is_free(shared_models: Path):
    """Without a balancer: clients look up the pods, take turns, and repeat what a pod refuses."""
    pods = 5
    rounds = -(-2 * (pods + 1) // ATTEMPTS)
    async with fleet(shared_models, SLOTS, grpc_connection_seconds=AGE) as running, AsyncExitStack() as stack:
        target = f"dns://127.0.0.1:{running.names.port}/{HOST}:8999"
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS))
        held: list[grpc.aio.StreamStreamCall] = []

        async def open_call() -> None:
            call = PersonaPlexStub(channel).Converse()
            await call.write(pb.ConverseRequest(start=pb.Start()))
            assert (await call.read()).WhichOneof("message") == "ready"
            held.append(call)

        async def settled(count: int) -> None:
            """The channel looks the name up again when a connection has reached its age."""
            await asyncio.sleep(3 * AGE)

        scenario = Scenario(running, stack)
        make: Make = lambda api: grpc_call(api, channel, rounds, running.waits)  # noqa: E731
        # While a client repeats a call, slots become free: only bursts of many calls fill the pool.
        await scenario.run(pods, open_call, settled, make, GRPC_APIS, CALLS, 2 * pods * SLOTS)
        # What had no slot yet began again at another pod.
        scenario.check(GRPC_APIS)
        await held[0].write(pb.ConverseRequest(audio=bytes(3840)))
        assert (await held[0].read()).WhichOneof("message") == "audio"
        held[0].cancel()
