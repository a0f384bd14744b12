"""The HTTP server and the gRPC one beside it: ports, TLS on both, and the order of going down."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import ssl
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import httpx
import psutil
import pytest

from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.api.grpc.personaplex.v1 import personaplex_pb2_grpc
from gateway.api.grpc.server import CannotListen, GrpcServer
from gateway.app import create_app
from gateway.server import GatewayServer
from gateway.settings import Settings, TlsFiles

DATA = Path(__file__).parents[1] / "data"
TLS = TlsFiles(DATA / "localhost.pem", DATA / "localhost-key.pem")


@pytest.fixture
def up(models, manifest, engine):
    """Serves the fake engine while inside; the ports of HTTP and gRPC, the latter 0 for none."""

    @asynccontextmanager
    async def serve(**settings):
        configured = Settings(models=models, **{"port": 0, **settings})
        app = create_app(configured, engine, manifest)
        server = GatewayServer(app, configured)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving = asyncio.create_task(server.serve([listener]))
            while not server.started:
                assert not serving.done()
                await asyncio.sleep(0.01)
            try:
                yield listener.getsockname()[1], app.state.grpc.port
            finally:
                server.hurry()
                server.should_exit = True
                await serving
        assert engine.opened == engine.closed

    return serve


async def end_of_call(channel: grpc.aio.Channel) -> pb.Ended:
    call = personaplex_pb2_grpc.PersonaPlexStub(channel).Converse(iter([pb.ConverseRequest(start=pb.Start())]))
    messages = [message async for message in call]
    return messages[-1].ended


async def test_both_ports_answer(up):
    async with up() as (http, rpc), grpc.aio.insecure_channel(f"127.0.0.1:{rpc}") as channel:
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"http://127.0.0.1:{http}/readyz")).status_code == 200
        assert (await end_of_call(channel)).reason == pb.END_REASON_COMPLETED


async def test_tls_on_both_ports(up):
    trusted = ssl.create_default_context(cafile=str(TLS.certificate))
    credentials = grpc.ssl_channel_credentials(TLS.certificate.read_bytes())
    async with up(tls_certificate=TLS.certificate, tls_key=TLS.key) as (http, rpc):
        async with httpx.AsyncClient(verify=trusted) as client:
            assert (await client.get(f"https://localhost:{http}/readyz")).status_code == 200
            with pytest.raises(httpx.TransportError):
                await client.get(f"http://localhost:{http}/readyz")
        async with grpc.aio.secure_channel(f"localhost:{rpc}", credentials) as channel:
            assert (await end_of_call(channel)).reason == pb.END_REASON_COMPLETED
        async with grpc.aio.insecure_channel(f"localhost:{rpc}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await end_of_call(channel)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_client_that_does_not_read_a_streamed_answer_is_disconnected(up):
    recording = base64.b64encode((DATA / "question.wav").read_bytes()).decode()
    body = json.dumps({"audio": recording, "stream": True, "max_steps": 7500}).encode()
    head = (
        f"POST /v1/respond HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    async with up(idle_seconds=0.3) as (http, _), httpx.AsyncClient() as client:

        async def active() -> bool:
            page = (await client.get(f"http://127.0.0.1:{http}/metrics")).text
            return "personaplex_conversations_active 1.0" in page

        with socket.socket() as client_socket:
            client_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
            client_socket.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client_socket, ("127.0.0.1", http))
            await asyncio.get_running_loop().sock_sendall(client_socket, head.encode() + body)
            ours = client_socket.getsockname()
            async with asyncio.timeout(20):
                while not await active():  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                while await active():  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert ours not in [connection.raddr for connection in psutil.Process().net_connections("tcp")]


async def test_grpc_can_be_switched_off(up):
    async with up(grpc_port=-1) as (_, rpc):
        assert rpc == 0


async def test_a_port_in_use_is_reported(app_calls):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(CannotListen, match="cannot listen on"):
        await GrpcServer(app_calls).start("127.0.0.1", taken.getsockname()[1])


async def test_an_unreadable_certificate_is_reported(app_calls, tmp_path):
    with pytest.raises(CannotListen, match=r"nothing\.pem"):
        await GrpcServer(app_calls).start("127.0.0.1", 0, TlsFiles(tmp_path / "nothing.pem", TLS.key))


@pytest.fixture
def app_calls(models, manifest, engine):
    return create_app(Settings(models=models), engine, manifest).state.runtime


async def test_stopping_ends_live_sessions_with_a_reason(up):
    async with up() as (_, rpc):
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{rpc}")
        call = personaplex_pb2_grpc.PersonaPlexStub(channel).Converse()
        await call.write(pb.ConverseRequest(start=pb.Start()))
        assert (await call.read()).WhichOneof("message") == "ready"
        ended = asyncio.create_task(_ended(call))
    assert (await ended).reason == pb.END_REASON_DRAINED
    await channel.close()


async def _ended(call: grpc.aio.StreamStreamCall) -> pb.Ended:
    while (message := await call.read()).WhichOneof("message") != "ended":
        pass
    return message.ended
