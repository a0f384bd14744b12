"""A fleet is one pool: no call is refused while a pod has a free slot, whatever happens to the other pods."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

import grpc
import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect

from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.api.grpc.personaplex.v1.personaplex_pb2_grpc import PersonaPlexStub
from gateway.client.grpc_pool import ATTEMPTS, CHANNEL_OPTIONS
from tests.effort import effort
from tests.fleet.calls import GRPC_APIS, HTTP_APIS, Outcome, Result, grpc_call, http_call
from tests.fleet.fleet import HOST, Balancer, Fleet, Pod, balancer, fleet, least_free
from tests.gateway.conftest import shared_models

__all__ = ["shared_models"]

SLOTS = 2
CALLS = 10_000
AGE = 1.0
"""Seconds after which gRPC clients connect again."""
REFUSAL_S = 0.1
"""Longest time of a refusal, with all its attempts, less the time that processes of the test waited for a processor."""
Make = Callable[[str], Awaitable[Result]]


async def hold(stack: AsyncExitStack, address: str) -> ClientConnection:
    """A call that lasts until the end of the stack."""
    client = await stack.enter_async_context(connect(f"ws://{address}/v1/converse", compression=None, proxy=None))
    await client.send('{"type": "start"}')
    await client.recv()
    return client


async def still_talks(client: ClientConnection) -> bool:
    """Whether the agent answers a user frame."""
    await client.send(bytes(3840))
    async with asyncio.timeout(10):
        for _ in range(2):
            await client.recv()
    return client.close_code is None


async def bursts(make: Make, apis: tuple[str, ...], calls: int, largest: int, seed: int) -> list[Result]:
    """Make calls of every API in bursts of random sizes, one after the other."""
    draw, results = random.Random(seed), []
    while len(results) < calls:
        burst = [draw.choice(apis) for _ in range(draw.randint(1, largest))]
        results += await asyncio.gather(*(make(api) for api in burst))
    return results


class Scenario:
    """One pod full from the start, one that drains with a call in progress, one that is killed, one that is added."""

    def __init__(self, running: Fleet, stack: AsyncExitStack) -> None:
        self.running = running
        self.stack = stack
        self.results: list[Result] = []
        self.killed: Pod

    async def run(
        self,
        count: int,
        open_call: Callable[[], Awaitable[None]],
        settled: Callable[[int], Awaitable[None]],
        make: Make,
        apis: tuple[str, ...],
        calls: int,
    ) -> None:
        """`count`: pods at first. `open_call`: begin a call through the pool. `settled`: wait for so many pods."""
        running = self.running
        full, drained, *others = await running.start(count)
        running.publish(drained)
        await settled(1)
        await open_call()
        running.publish(*running.pods)
        for _ in range(SLOTS):
            await hold(self.stack, f"{full.address}:8998")
        await settled(count)
        for pod in running.pods:
            pod.usable = (pod.taken[0][0], pod.usable[1])
        largest = (count - 1) * SLOTS + 1
        part = calls // 4

        async def some() -> None:
            self.results += await bursts(make, apis, part, largest, len(self.results))

        await some()
        drained.drain()
        await some()
        running.publish(full, *others)
        killing = asyncio.create_task(some())
        await asyncio.sleep(0.5)
        self.killed = others[-1]
        self.killed.kill()
        await killing
        running.publish(full, *others[:-1])
        await settled(count - 2)
        (added,) = await running.start()
        running.publish(full, *others[:-1], added)
        await settled(count - 1)
        added.usable = (added.taken[0][0], added.usable[1])
        await some()

    def check(self, apis: tuple[str, ...], lost: int | None = None) -> None:
        """No call was refused while a slot was free; no more calls broke than `lost` by the killed pod.

        Without `lost`, those are what the pod had accepted since the first of them began: on a busy machine the last
        messages of a call follow the release of its slot by far.
        """
        by_api = Counter((result.api, result.outcome) for result in self.results)
        print("\n".join(f"{api:14} " + " ".join(f"{o}: {by_api[api, o]}" for o in Outcome) for api in apis))
        for api in apis:
            assert by_api[api, Outcome.COMPLETED] > 0
        killed_at = self.killed.usable[1]
        broken = [result for result in self.results if result.outcome is Outcome.BROKEN]
        if lost is None:
            lost = self.killed.calls_since(min(result.began for result in broken)) if broken else 0
        print(f"broken {len(broken)}, lost by the killed pod {lost}")
        assert len(broken) <= lost, "\n".join(map(str, broken))
        for result in broken:
            assert result.began < killed_at + 0.1 < result.ended + 0.2, result
        refused = [result for result in self.results if result.outcome is Outcome.REFUSED]
        free = self.running.free()
        wrong = [result for result in refused if least_free(free, result.began, result.answered) > 0]
        print(f"calls {len(self.results)}, refused {len(refused)}, of those wrongly {len(wrong)}")
        assert wrong == []
        assert refused
        times = sorted(max(0.0, result.answered - result.began - result.waited) for result in refused)
        print(f"a refusal took {median(times) * 1000:.0f} ms (median), {times[-1] * 1000:.0f} ms (longest)")
        assert times[-1] < REFUSAL_S


@pytest.mark.effort
@pytest.mark.timeout(3600)
async def test_haproxy_refuses_no_call_while_a_slot_is_free(shared_models: Path, tmp_path: Path):
    pods = effort(3, 5)
    async with fleet(shared_models, SLOTS) as running, AsyncExitStack() as stack:
        at: Balancer = await stack.enter_async_context(balancer(running, tmp_path, pods))
        client = await stack.enter_async_context(httpx.AsyncClient(trust_env=False, timeout=30))
        held: list[ClientConnection] = []

        async def open_call() -> None:
            held.append(await hold(stack, at.url))

        scenario = Scenario(running, stack)
        make: Make = lambda api: http_call(api, at.url, client, running.waits)  # noqa: E731
        await scenario.run(pods, open_call, at.ready, make, HTTP_APIS, effort(120, CALLS))
        # By HAProxy's log: calls in progress at the killed pod, and requests that it had received and not read yet.
        assert set(at.lost) <= {scenario.killed.address}
        scenario.check(HTTP_APIS, len(at.lost))
        assert await still_talks(held[0])


async def test_haproxy_finds_every_pod_of_a_large_fleet(tmp_path: Path):
    count = 700
    async with fleet(tmp_path) as running:
        running.names.addresses[:] = [f"127.9.{number // 250}.{number % 250 + 1}" for number in range(count)]
        # Nothing listens there. Without health checks every known address is up.
        unchecked = "default-server init-addr none resolvers cluster"
        async with balancer(running, tmp_path, count, default_server=unchecked) as at:
            await at.ready(count)


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
        await scenario.run(pods, open_call, settled, make, GRPC_APIS, CALLS)
        # What had no slot yet began again at another pod.
        scenario.check(GRPC_APIS)
        await held[0].write(pb.ConverseRequest(audio=bytes(3840)))
        assert (await held[0].read()).WhichOneof("message") == "audio"
        held[0].cancel()
