"""Stop `personaplex serve` during live sessions: they go on for the drain time and then end with its reason."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

import grpc
import httpx
import pytest
import websockets

from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.api.grpc.personaplex.v1 import personaplex_pb2_grpc
from tests.conftest import GOLDEN

ROOT = Path(__file__).parents[2]
FRAME_S = 0.08
DRAIN_S = 2.0


class Server:
    """The real command, in a process of its own."""

    def __init__(self, models: Path, *options: str) -> None:
        command = [sys.executable, "-m", "gateway.cli", "serve", str(models), "--port", "0", "--grpc-port", "0"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True, env=environment)
        lines = self.process.stdout
        assert lines is not None
        self.url = next(socket for socket in lines if socket.startswith("PersonaPlex is ready: ")).split()[-1]
        self.grpc_target = next(socket for socket in lines if socket.startswith("  gRPC ")).split()[1]

    def signal(self) -> float:
        """Stop the server; return the time."""
        self.process.send_signal(signal.SIGTERM)
        return monotonic()


@pytest.fixture
def serve(tiny_models: Path) -> Iterator[Callable[..., Server]]:
    started: list[Server] = []

    def start(*options: str) -> Server:
        started.append(Server(tiny_models, *options))
        return started[-1]

    yield start
    for server in started:
        server.process.kill()
        server.process.communicate()


class User:
    """A user who sends audio in real time until the session ends. Counts frames and records the end."""

    def __init__(self) -> None:
        self.frames = 0
        self.ended_at = 0.0
        self.end = ""

    async def over_grpc(self, target: str) -> None:
        async with grpc.aio.insecure_channel(target) as channel:
            call = personaplex_pb2_grpc.PersonaPlexStub(channel).Converse()
            await call.write(pb.ConverseRequest(start=pb.Start()))

            async def send() -> None:
                while True:
                    await call.write(pb.ConverseRequest(audio=bytes(3840)))
                    await asyncio.sleep(FRAME_S)

            sending = asyncio.create_task(send())
            with pytest.raises(grpc.aio.AioRpcError) as status:  # noqa: PT012
                while (message := await call.read()) is not grpc.aio.EOF:
                    self.frames += message.WhichOneof("message") == "audio"
                    if message.WhichOneof("message") == "ended":
                        self.ended_at = monotonic()
                        self.end = pb.EndReason.Name(message.ended.reason)
            sending.cancel()
            assert status.value.code() is grpc.StatusCode.UNAVAILABLE
            assert dict(status.value.trailing_metadata())["personaplex-reason"] == "drained"

    async def over_websocket(self, url: str) -> None:
        async with websockets.connect(url.replace("http", "ws") + "/v1/converse") as socket:
            await socket.send(json.dumps({"type": "start"}))

            async def send() -> None:
                while True:
                    await socket.send(bytes(3840))
                    await asyncio.sleep(FRAME_S)

            sending = asyncio.create_task(send())
            with pytest.raises(websockets.ConnectionClosed) as closed:  # noqa: PT012
                while True:
                    message = await socket.recv()
                    self.frames += isinstance(message, bytes)
                    if isinstance(message, str) and (event := json.loads(message))["type"] == "ended":
                        self.ended_at = monotonic()
                        self.end = event["reason"]
            sending.cancel()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1012


async def all_receive(*users: User) -> None:
    """Wait until each user has received frames."""
    async with asyncio.timeout(30):
        while not all(user.frames > 2 for user in users):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_live_sessions_go_on_for_the_drain_time(serve):
    server = serve("--drain", str(DRAIN_S))
    by_grpc, by_websocket = User(), User()
    async with asyncio.TaskGroup() as talk, httpx.AsyncClient(base_url=server.url) as client:
        talk.create_task(by_grpc.over_grpc(server.grpc_target))
        talk.create_task(by_websocket.over_websocket(server.url))
        await all_receive(by_grpc, by_websocket)
        # A turn session does not delay the stop.
        recording = ("user.wav", (GOLDEN / "user.wav").read_bytes())
        turn = await client.post("/v1/respond", files={"audio": recording}, data={"max_steps": "3", "keep": "true"})
        assert turn.status_code == 200
        stopped_at = server.signal()
        await asyncio.sleep(DRAIN_S / 4)
        before = by_grpc.frames, by_websocket.frames
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["type"]) == (503, "urn:personaplex:draining")
        refused = await client.post("/v1/respond", files={"audio": recording})
        assert refused.status_code == 503
        await asyncio.sleep(DRAIN_S / 4)
        assert by_grpc.frames > before[0], "live sessions go on"
        assert by_websocket.frames > before[1], "live sessions go on"
    assert (by_grpc.end, by_websocket.end) == ("END_REASON_DRAINED", "drained")
    for user in (by_grpc, by_websocket):
        assert DRAIN_S <= user.ended_at - stopped_at < DRAIN_S + 1.5
    assert await asyncio.to_thread(server.process.wait, 15) == 0


async def test_a_second_signal_ends_sessions_at_once(serve):
    server = serve("--drain", "60")
    user = User()
    async with asyncio.TaskGroup() as talk:
        talk.create_task(user.over_grpc(server.grpc_target))
        await all_receive(user)
        server.signal()
        await asyncio.sleep(0.5)
        assert not user.end
        again = server.signal()
    assert user.end == "END_REASON_DRAINED"
    assert user.ended_at - again < 1.5
    assert await asyncio.to_thread(server.process.wait, 15) == 0


# In the short form, servers of other tests without sessions end so.
@pytest.mark.long
async def test_without_sessions_it_stops_at_once(serve):
    server = serve("--drain", "60")
    async with httpx.AsyncClient(base_url=server.url) as client:
        recording = ("user.wav", (GOLDEN / "user.wav").read_bytes())
        await client.post("/v1/respond", files={"audio": recording}, data={"max_steps": "3", "keep": "true"})
        server.signal()
        assert await asyncio.to_thread(server.process.wait, 15) == 0
