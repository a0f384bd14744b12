"""A gateway that is killed with every slot taken takes its slots over when it comes back to a Triton that lives."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import grpc
import pytest

from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.api.grpc.personaplex.v1 import personaplex_pb2_grpc
from gateway.manifest import Manifest
from gateway.triton_server.server import TritonServer
from tests.end_to_end.test_drain import Server

RETURN_S = 5.0
FRAMES = 10


@pytest.fixture
def triton(tiny_models: Path) -> Iterator[TritonServer]:
    with TritonServer(tiny_models / "triton") as server:
        yield server


async def begin(stub: personaplex_pb2_grpc.PersonaPlexStub) -> grpc.aio.StreamStreamCall:
    """A live session whose prompt is in the models."""
    call = stub.Converse()
    await call.write(pb.ConverseRequest(start=pb.Start()))
    while (await call.read()).WhichOneof("message") != "ready":
        pass
    return call


async def kill_with_every_slot_taken(server: Server, slots: int) -> None:
    async with grpc.aio.insecure_channel(server.grpc_target) as channel:
        stub = personaplex_pb2_grpc.PersonaPlexStub(channel)
        calls = await asyncio.gather(*(begin(stub) for _ in range(slots)))
        # In the middle of frames, some of which are in the models.
        await asyncio.gather(*(call.write(pb.ConverseRequest(audio=bytes(3840 * 3))) for call in calls))
        server.process.kill()
        server.process.communicate()


async def talk(target: str) -> int:
    """Audio frames that a session gets for FRAMES user frames."""
    async with grpc.aio.insecure_channel(target) as channel:
        call = await begin(personaplex_pb2_grpc.PersonaPlexStub(channel))
        await call.write(pb.ConverseRequest(audio=bytes(3840 * FRAMES)))
        await call.done_writing()
        frames = 0
        while (message := await call.read()) is not grpc.aio.EOF:
            frames += message.WhichOneof("message") == "audio"
        return frames


def test_a_killed_gateway_holds_sessions_in_every_slot_soon_after_its_return(tiny_models: Path, triton: TritonServer):
    slots = Manifest.load(tiny_models).slots
    first = Server(tiny_models, "--triton", triton.http_url)
    asyncio.run(kill_with_every_slot_taken(first, slots))
    second = Server(tiny_models, "--triton", triton.http_url)
    try:
        returned = monotonic()

        async def all_slots() -> list[int]:
            return await asyncio.gather(*(talk(second.grpc_target) for _ in range(slots)))

        assert asyncio.run(all_slots()) == slots * [FRAMES + 1]
        assert monotonic() - returned < RETURN_S
    finally:
        second.process.kill()
        second.process.communicate()
