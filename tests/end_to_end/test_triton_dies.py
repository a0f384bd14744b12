"""Kill Triton during sessions: all end with the reason at once; the gateway stays and serves when Triton is back."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from time import monotonic

import grpc
import httpx
import numpy as np
import psutil
import pytest
import websockets

from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.api.grpc.personaplex.v1 import personaplex_pb2_grpc
from tests.end_to_end.conftest import wav
from tests.end_to_end.test_drain import FRAME_S, Server, serve

__all__ = ["serve"]

ENDED_S = 2.0
SECOND = wav(np.zeros(24_000, np.float32))


class User:
    """A user who stays until the session ends. Records the time and the reason."""

    def __init__(self) -> None:
        self.frames = 0
        self.ended_at = 0.0
        self.reason = ""

    async def over_grpc(self, target: str) -> None:
        async with grpc.aio.insecure_channel(target) as channel:
            call = personaplex_pb2_grpc.PersonaPlexStub(channel).Converse()
            await call.write(pb.ConverseRequest(start=pb.Start(on_gap=pb.ON_GAP_SILENCE)))
            with pytest.raises(grpc.aio.AioRpcError) as status:  # noqa: PT012
                while (message := await call.read()) is not grpc.aio.EOF:
                    self.frames += message.WhichOneof("message") == "audio"
                    if message.WhichOneof("message") == "ended":
                        assert message.ended.reason == pb.END_REASON_ENGINE
                        assert "Triton" in message.ended.message
        self.ended_at = monotonic()
        assert status.value.code() is grpc.StatusCode.UNAVAILABLE
        metadata = dict(status.value.trailing_metadata())
        assert int(metadata["retry-after"]) > 0
        self.reason = metadata["personaplex-reason"]

    async def over_grpc_stream(self, target: str) -> None:
        """RespondStream."""
        async with grpc.aio.insecure_channel(target) as channel:
            stub = personaplex_pb2_grpc.PersonaPlexStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as status:  # noqa: PT012
                async for chunk in stub.RespondStream(pb.RespondRequest(audio=SECOND, max_steps=7500)):
                    self.frames += chunk.WhichOneof("chunk") == "audio"
        self.ended_at = monotonic()
        assert status.value.code() is grpc.StatusCode.UNAVAILABLE
        self.reason = "engine" if "Triton" in (status.value.details() or "") else ""

    async def over_websocket(self, url: str, on_gap: str = "silence") -> None:
        async with websockets.connect(url.replace("http", "ws") + "/v1/converse", compression=None) as socket:
            await socket.send(json.dumps({"type": "start", "on_gap": on_gap}))
            await socket.send(bytes(4 * 3840))
            errors = []
            with pytest.raises(websockets.ConnectionClosed) as closed:  # noqa: PT012
                while True:
                    message = await socket.recv()
                    self.frames += isinstance(message, bytes)
                    if isinstance(message, str):
                        event = json.loads(message)
                        errors += [event["code"]] if event["type"] == "error" else []
                        self.reason = event["reason"] if event["type"] == "ended" else self.reason
            self.ended_at = monotonic()
            assert errors == ["engine-error"]
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1011

    async def over_rest(self, url: str) -> None:
        """A streamed response: its status has been sent, so the body ends early."""
        body = {"audio": base64.b64encode(SECOND).decode(), "max_steps": 7500, "stream": True}
        async with (
            httpx.AsyncClient(base_url=url, timeout=30) as client,
            client.stream("POST", "/v1/respond", json=body) as response,
        ):
            assert response.status_code == 200
            with pytest.raises(httpx.RemoteProtocolError):  # noqa: PT012
                async for piece in response.aiter_raw():
                    self.frames += len(piece) > 0
            self.ended_at = monotonic()
            self.reason = "engine"


def tritonserver(server: Server) -> psutil.Process:
    return next(p for p in psutil.Process(server.process.pid).children(recursive=True) if p.name() == "tritonserver")


async def ended_by_engine(client: httpx.AsyncClient) -> float:
    page = (await client.get("/metrics")).text
    lines = [line for line in page.splitlines() if line.startswith("personaplex_ended_total{")]
    return sum(float(line.split()[1]) for line in lines if 'reason="engine"' in line)


async def test_all_sessions_end_and_the_service_comes_back(serve: Callable[..., Server]) -> None:
    server = serve()
    live = [User() for _ in range(5)]
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
        async with asyncio.TaskGroup() as talk:
            talk.create_task(live[0].over_grpc(server.grpc_target))
            talk.create_task(live[1].over_websocket(server.url))
            talk.create_task(live[2].over_rest(server.url))
            talk.create_task(live[3].over_grpc_stream(server.grpc_target))
            # Silent, with on_gap=wait: Triton receives no requests for this one.
            talk.create_task(live[4].over_websocket(server.url, on_gap="wait"))
            async with asyncio.timeout(30):
                while not all(user.frames > 3 for user in live):  # noqa: ASYNC110
                    await asyncio.sleep(FRAME_S)
            killed_at = monotonic()
            tritonserver(server).kill()
            # Not ready once the last answer is a second old, and still there.
            async with asyncio.timeout(ENDED_S):
                while (await client.get("/readyz")).status_code != 503:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert (await client.get("/healthz")).status_code == 200
            refused = await client.post("/v1/respond", files={"audio": ("q.wav", SECOND)}, data={"max_steps": "2"})
            assert refused.status_code == 503
            assert int(refused.headers["Retry-After"]) > 0
        seconds_to_end = [user.ended_at - killed_at for user in live]
        print("ended after", [f"{1000 * seconds:.0f} ms" for seconds in seconds_to_end])
        assert all(0 < seconds < ENDED_S for seconds in seconds_to_end)
        assert [user.reason for user in live] == ["engine"] * len(live)
        assert await ended_by_engine(client) == len(live) + 1
        async with asyncio.timeout(60):
            while (await client.get("/readyz")).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        print(f"ready again after {monotonic() - killed_at:.1f} s")
        assert "personaplex_conversations_active 0.0" in (await client.get("/metrics")).text
        answer = await client.post("/v1/respond", files={"audio": ("q.wav", SECOND)}, data={"max_steps": "5"})
        assert (answer.status_code, len(answer.content)) == (200, 44 + 5 * 3840)
        async with websockets.connect(server.url.replace("http", "ws") + "/v1/converse") as socket:
            await socket.send('{"type": "start"}')
            await socket.send(bytes(3840))
            await socket.send('{"type": "end"}')
            messages = [message async for message in socket]
            assert json.loads(messages[-1])["reason"] == "completed"
