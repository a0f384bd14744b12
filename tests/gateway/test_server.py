"""The HTTP server and the gRPC one beside it: ports, TLS on both, and the order of going down."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import socket
import ssl
import subprocess
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


def issue(folder: Path, name: str) -> TlsFiles:
    """A self-signed certificate for localhost, of the organization `name`."""
    files = TlsFiles(folder / f"{name}.pem", folder / f"{name}-key.pem")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-subj", f"/O={name}/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", str(files.key), "-out", str(files.certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return files


def issuer(http: int, *trusted: TlsFiles, name: str) -> str:
    """Connect by TLS; return the organization of the certificate."""
    context = ssl.create_default_context()
    for files in trusted:
        context.load_verify_locations(files.certificate)
    with (
        socket.create_connection(("127.0.0.1", http)) as plain,
        context.wrap_socket(plain, server_hostname=name) as tls,
    ):
        subject = tls.getpeercert()["subject"]
    return next(value for part in subject for key, value in part if key == "organizationName")


async def grpc_answers(rpc: int, trusted: TlsFiles) -> bool:
    """Whether a new gRPC connection that trusts this certificate only is accepted."""
    credentials = grpc.ssl_channel_credentials(trusted.certificate.read_bytes())
    # Channels to one address share a connection otherwise.
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(f"localhost:{rpc}", credentials, options) as channel:
        try:
            await end_of_call(channel)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                return False
            raise
        return True


async def test_a_new_certificate_is_used_without_a_restart(up, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("gateway.file_watch._INTERVAL_S", 0.0)
    old, new = issue(tmp_path, "old"), issue(tmp_path, "new")
    used = TlsFiles(tmp_path / "tls.crt", tmp_path / "tls.key")
    for source, target in zip(old, used, strict=True):
        shutil.copy(source, target)
    async with up(tls_certificate=used.certificate, tls_key=used.key) as (http, rpc):
        assert await asyncio.to_thread(issuer, http, old, new, name="localhost") == "old"
        assert await grpc_answers(rpc, old)
        # The certificate without its key, as between the writes of two files: the earlier pair stays.
        shutil.copy(new.certificate, used.certificate)
        assert await asyncio.to_thread(issuer, http, old, new, name="localhost") == "old"
        assert await grpc_answers(rpc, old)
        assert "the certificate stays as it was" in caplog.text
        shutil.copy(new.key, used.key)
        for name in ("localhost", "127.0.0.1"):
            assert await asyncio.to_thread(issuer, http, old, new, name=name) == "new"
        assert await grpc_answers(rpc, new)
        assert not await grpc_answers(rpc, old)


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
