"""Behind HAProxy a fleet is one pool: no call is refused while a pod has a free slot, whatever happens to others."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest
from websockets.asyncio.client import ClientConnection

from tests.effort import effort
from tests.fleet.calls import HTTP_APIS, http_call
from tests.fleet.fleet import Balancer, balancer, fleet
from tests.fleet.scenario import CALLS, SLOTS, Make, Scenario, hold, still_talks
from tests.gateway.conftest import shared_models

__all__ = ["shared_models"]


@pytest.mark.effort
@pytest.mark.timeout(3600)
async def test_haproxy_refuses_no_call_while_a_slot_is_free(shared_models: Path, tmp_path: Path):
    pods = effort(3, 5)
    async with fleet(shared_models, SLOTS) as running, AsyncExitStack() as stack:
        at: Balancer = await stack.enter_async_context(balancer(running, tmp_path, pods))
        # On a kept connection HAProxy neither answers nor logs a request whose pod ended: the client is to repeat it.
        limits = httpx.Limits(max_keepalive_connections=0)
        client = await stack.enter_async_context(httpx.AsyncClient(trust_env=False, timeout=30, limits=limits))
        held: list[ClientConnection] = []

        async def open_call() -> None:
            held.append(await hold(stack, at.url))

        scenario = Scenario(running, stack)
        make: Make = lambda api: http_call(api, at.url, client, running.waits)  # noqa: E731
        await scenario.run(pods, open_call, at.ready, make, HTTP_APIS, effort(120, CALLS), pods * SLOTS + 1)
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
