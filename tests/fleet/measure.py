"""Refused calls, measured: pods picked at random, the pools of HAProxy, Envoy and gRPC's clients, beside Erlang B.

    .venv/bin/python -m tests.fleet.measure

It starts gateways with a fake engine, HAProxy and Envoy. Calls arrive at random times (Poisson) and their length is
exponential. The load is measured: the mean number of calls in progress, from the pods' own logs, and what was refused.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Annotated

import grpc
import typer
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.api.grpc.personaplex.v1.personaplex_pb2_grpc import PersonaPlexStub
from gateway.client.grpc_pool import ATTEMPTS, CHANNEL_OPTIONS, RETRIABLE, begin
from loadtest.fleet.simulation import erlang_b
from tests.fleet.envoy import envoy_gateway
from tests.fleet.fleet import HOST, Fleet, balancer, fleet, least_free
from tests.gateway.conftest import default_manifest, write_models

WAYS = ("random", "HAProxy", "Envoy", "gRPC clients")
_WARM_UP = 5
"""Mean lengths of a call until the fleet, which is empty at first, is as full as later on."""

Hold = Callable[[float], Awaitable[float | None]]
"""Makes a call of so many seconds. Returns the time at which it was refused, or None."""


@dataclass(frozen=True)
class Measured:
    """One row. offered: mean calls in progress if none were refused. wrong: calls refused while a slot was free."""

    way: str
    calls: int
    refused: int
    wrong: int
    offered: float


async def measure(way: str, load: float, pods: int, slots: int, calls: int, length: float) -> Measured:
    """Measure one way at `load` calls per slot. `length`: mean seconds of a call."""
    draw = random.Random(7)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        models = write_models(folder / "MODELS", default_manifest() | {"slots": slots})
        running = await stack.enter_async_context(fleet(models, slots, delay=0.0))
        running.publish(*await running.start(pods))
        for pod in running.pods:
            pod.usable = (pod.taken[0][0], pod.usable[1])
        hold = await _ways(running, stack, folder, draw)[way]()
        arrivals = load * pods * slots / length
        counted, refusals, tasks = 0, list[tuple[float, float]](), set[asyncio.Task[None]]()

        async def call(seconds: float) -> None:
            began = monotonic()
            if (refused := await hold(seconds)) is not None and began >= begin_at:
                refusals.append((began, refused))

        begin_at = monotonic() + _WARM_UP * length
        at = monotonic()
        while counted < calls:
            at += draw.expovariate(arrivals)
            await asyncio.sleep(max(0.0, at - monotonic()))
            counted += monotonic() >= begin_at
            task = asyncio.create_task(call(draw.expovariate(1 / length)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        end_at = monotonic()
        await asyncio.gather(*tasks)
        free = running.free()
        wrong = sum(least_free(free, *times) > 0 for times in refusals)
        in_progress = pods * slots - _mean(free, begin_at, end_at)
        return Measured(way, counted, len(refusals), wrong, in_progress / (1 - len(refusals) / counted))


def _mean(steps: list[tuple[float, int]], begin_at: float, end_at: float) -> float:
    """Return the mean over time of a step function."""
    total = 0.0
    for (at, value), (until, _) in pairwise([*steps, (end_at, 0)]):
        total += value * max(0.0, min(until, end_at) - max(at, begin_at))
    return total / (end_at - begin_at)


def _ways(
    running: Fleet, stack: AsyncExitStack, folder: Path, draw: random.Random
) -> dict[str, Callable[[], Awaitable[Hold]]]:
    async def at_random() -> Hold:
        return lambda seconds: _websocket(f"{draw.choice(running.pods).address}:8998", seconds)

    async def haproxy() -> Hold:
        pool = await stack.enter_async_context(balancer(running, folder, len(running.pods)))
        await pool.ready(len(running.pods))
        return lambda seconds: _websocket(pool.url, seconds)

    async def envoy() -> Hold:
        pool = await stack.enter_async_context(envoy_gateway(running, folder, len(running.pods)))
        await pool.ready(len(running.pods))
        return lambda seconds: _websocket(pool.url, seconds)

    async def grpc_clients() -> Hold:
        target = f"dns://127.0.0.1:{running.names.port}/{HOST}:8999"
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS))
        rounds = -(-2 * len(running.pods) // ATTEMPTS)
        return lambda seconds: _grpc(PersonaPlexStub(channel), rounds, seconds)

    return dict(zip(WAYS, (at_random, haproxy, envoy, grpc_clients), strict=True))


async def _websocket(address: str, seconds: float) -> float | None:
    try:
        async with connect(f"ws://{address}/v1/converse", compression=None, proxy=None, open_timeout=60) as client:
            await client.send('{"type": "start"}')
            await asyncio.sleep(seconds)
    except InvalidStatus as error:
        if error.response.status_code != 503:
            raise
        return monotonic()
    return None


async def _grpc(stub: PersonaPlexStub, rounds: int, seconds: float) -> float | None:
    over = asyncio.Event()

    async def messages():  # type: ignore[no-untyped-def]
        yield pb.ConverseRequest(start=pb.Start())
        await over.wait()

    call = await begin(lambda: stub.Converse(messages()), rounds)
    try:
        accepted = await call.read() is not grpc.aio.EOF
    except grpc.aio.AioRpcError:
        accepted = False
    if not accepted:
        code = await call.code()
        assert code in RETRIABLE, code
        return monotonic()
    await asyncio.sleep(seconds)
    over.set()
    call.cancel()
    return None


def main(
    load: Annotated[list[float], typer.Option(help="Mean calls in progress per slot. Repeatable.")] = [0.7, 0.9],  # noqa: B006
    pods: Annotated[int, typer.Option(min=1)] = 5,
    slots: Annotated[int, typer.Option(min=1, help="Slots of each pod.")] = 8,
    calls: Annotated[int, typer.Option(min=10, help="Calls per row.")] = 2000,
    length: Annotated[float, typer.Option(min=0.05, help="Mean seconds of a call.")] = 1.0,
    way: Annotated[list[str], typer.Option(help="How pods are picked. Repeatable.")] = list(WAYS),  # noqa: B006
) -> None:
    """Print a table."""
    print(f"{pods} pods of {slots} slots, {calls} calls of {length:g} s on average per row; percent of calls\n")
    print(
        "| pods picked | load | refused | of these while a slot was free | Erlang B, one pod | Erlang B, all as one |"
    )
    print("|---|---|---|---|---|---|")
    for each in load:
        for picked in way:
            found = asyncio.run(measure(picked, each, pods, slots, calls, length))
            erlang = erlang_b(slots, found.offered / pods), erlang_b(pods * slots, found.offered)
            numbers = (100 * each for each in (found.refused / found.calls, found.wrong / found.calls, *erlang))
            cells = " | ".join(f"{number:.1f}" for number in numbers)
            print(f"| {found.way} | {found.offered / pods / slots:.2f} | {cells} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
