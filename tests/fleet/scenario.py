"""Calls of every API to a pool of pods of which one is full, one drains, one is killed and one is added."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from statistics import median

from websockets.asyncio.client import ClientConnection, connect

from tests.fleet.calls import Outcome, Result
from tests.fleet.fleet import Fleet, Pod, least_free

SLOTS = 2
CALLS = 10_000
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
        largest: int,
    ) -> None:
        """`count`: pods at first. `open_call`: begin a call through the pool. `settled`: wait for so many pods.

        `largest`: calls of a burst at most.
        """
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
        part = calls // 4

        async def some() -> None:
            self.results += await bursts(make, apis, part, largest, len(self.results))

        await some()
        drained.drain()
        await some()
        running.publish(full, *others)
        killing = asyncio.create_task(some())
        await asyncio.sleep(0.2)
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
        for name, times in (
            ("with waiting for a processor", [result.answered - result.began for result in refused]),
            ("without it", [max(0.0, result.answered - result.began - result.waited) for result in refused]),
        ):
            middle, longest = median(times), max(times)
            print(f"a refusal took {middle * 1000:.0f} ms (median), {longest * 1000:.0f} ms (longest) {name}")
        assert longest < REFUSAL_S
