"""Behind Envoy, with the chart's policies, a fleet is one pool for HTTP, WebSockets and gRPC."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from time import monotonic

import grpc
import httpx
import numpy as np
import pytest
from websockets.asyncio.client import ClientConnection

from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.api.grpc.personaplex.v1.personaplex_pb2_grpc import PersonaPlexStub
from gateway.audio.wav import wav
from tests.fleet.calls import GRPC_APIS, HTTP_APIS, Outcome, Result, grpc_call, http_call
from tests.fleet.envoy import GRPC_HOST, EnvoyGateway, envoy_gateway
from tests.fleet.fleet import Fleet, Pod, fleet
from tests.fleet.scenario import CALLS, REFUSAL_S, SLOTS, Scenario, hold, still_talks
from tests.gateway.conftest import shared_models

__all__ = ["shared_models"]

APIS = (*HTTP_APIS, *GRPC_APIS)
RECORDING = wav(np.zeros(60 * 24_000, np.float32), 24_000)
"""2.9 MB. Envoy's own limit of what it repeats is 32 kB here."""


class Client:
    """Makes calls through Envoy, each once."""

    def __init__(self, running: Fleet, envoy: EnvoyGateway) -> None:
        self._running = running
        self._envoy = envoy
        self.http = httpx.AsyncClient(trust_env=False, timeout=30, base_url=f"http://{envoy.url}")
        options = [("grpc.default_authority", GRPC_HOST), ("grpc.enable_retries", 0)]
        self._channel = grpc.aio.insecure_channel(envoy.url, options=options)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()
        await self._channel.close()

    async def call(self, api: str) -> Result:
        if api in HTTP_APIS:
            return await http_call(api, self._envoy.url, self.http, self._running.waits)
        return await grpc_call(api, self._channel, 1, self._running.waits)

    async def upload(self) -> None:
        """Send the recording over both APIs. Fails if a pod's answer is another than that to the recording."""
        sent = await self.http.post("/v1/respond", files={"audio": RECORDING}, data={"max_steps": "3"})
        assert sent.status_code == 200, sent.text
        await PersonaPlexStub(self._channel).Respond(pb.RespondRequest(audio=RECORDING, max_steps=3))


async def in_use(pods: list[Pod], taken: int) -> Pod:
    """Wait until so many slots of a pod are taken, and return it."""
    async with asyncio.timeout(10):
        while not (found := [pod for pod in pods if pod.taken[-1][1] == taken]):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return found[0]


async def test_envoy_repeats_on_another_pod_what_a_pod_refuses(shared_models: Path, tmp_path: Path):
    async with fleet(shared_models, SLOTS) as running, AsyncExitStack() as stack:
        running.publish(*await running.start(2))
        envoy = await stack.enter_async_context(envoy_gateway(running, tmp_path, 2))
        client = await stack.enter_async_context(Client(running, envoy))
        await envoy.ready(2)
        held = await hold(stack, envoy.url)
        full = await in_use(running.pods, 1)
        (free,) = (pod for pod in running.pods if pod is not full)
        other = await hold(stack, f"{full.address}:8998")
        await in_use([full], SLOTS)

        for at in range(0, len(APIS), SLOTS):
            results = await asyncio.gather(*map(client.call, APIS[at : at + SLOTS]))
            assert {result.outcome for result in results} == {Outcome.COMPLETED}, results
        # Envoy picks the full pod first at least once, but for one run in a million.
        for _ in range(20):
            await client.upload()
            if min((await envoy.repeated("recordings")).values()) > 0:
                break
        assert min((await envoy.repeated("recordings")).values()) > 0

        await other.close()
        await in_use([full], 1)
        full.drain()
        while (await client.http.get(f"http://{full.address}:8998/readyz")).status_code == 200:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        drained_at = monotonic()
        assert (await client.call("converse")).outcome is Outcome.COMPLETED
        assert (await client.call("Converse")).outcome is Outcome.COMPLETED
        for _ in range(SLOTS):
            await hold(stack, f"{free.address}:8998")
        await in_use([free], SLOTS)
        for api in APIS:
            result = await client.call(api)
            assert result.outcome is Outcome.REFUSED, result
            assert result.answered - result.began - result.waited < REFUSAL_S
        assert "Retry-After" in (await client.http.post("/v1/respond", files={"audio": RECORDING})).headers
        assert full.calls_since(drained_at) == 1
        assert await still_talks(held)
        assert envoy.unanswered == []


@pytest.mark.long
@pytest.mark.timeout(3600)
async def test_envoy_refuses_no_call_while_a_slot_is_free(shared_models: Path, tmp_path: Path):
    pods = 5
    async with fleet(shared_models, SLOTS) as running, AsyncExitStack() as stack:
        envoy = await stack.enter_async_context(envoy_gateway(running, tmp_path, pods))
        client = await stack.enter_async_context(Client(running, envoy))
        held: list[ClientConnection] = []

        async def open_call() -> None:
            held.append(await hold(stack, envoy.url))

        scenario = Scenario(running, stack)
        await scenario.run(pods, open_call, envoy.ready, client.call, APIS, CALLS // 20, pods * SLOTS + 1)
        # By Envoy's log: calls in progress at the killed pod, and requests that it had received and not read yet.
        killed = scenario.killed
        assert set(envoy.unanswered) <= {killed.address}
        scenario.check(APIS, sum(at >= killed.usable[1] and pod == killed.address for at, pod in envoy.ended))
        assert await still_talks(held[0])
