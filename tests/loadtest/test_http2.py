"""The gRPC call against the server of grpcio, and against servers that violate HTTP/2."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
import pytest

from loadtest.http2 import GrpcCall
from loadtest.record import CallFailed, Malformed

PATH = "/test.Echo/Call"

Handler = Callable[[AsyncIterator[bytes], grpc.aio.ServicerContext], AsyncIterator[bytes]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    server = grpc.aio.server()
    method = grpc.stream_stream_rpc_method_handler(handler)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Echo", {"Call": method})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await server.stop(None)


@asynccontextmanager
async def server_sending(*sent: bytes) -> AsyncIterator[str]:
    """A server that sends these bytes and closes the connection."""

    async def handle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in sent:
            writer.write(piece)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def echo(requests: AsyncIterator[bytes], _: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


@pytest.mark.parametrize("size", [0, 1, 3840, 16_384, 100_000, 1_000_000])
async def test_messages_of_any_size_come_back_whole(size: int):
    received: list[bytes] = []
    messages = [bytes([n]) * size for n in range(5)]
    async with serving(echo) as target:
        call = await GrpcCall.open(target, PATH, [], received.append)
        for message in messages:
            await call.send(message)
        call.half_close()
        status = await call.ended
    assert status.code == 0
    assert received == messages


async def test_sending_waits_for_the_servers_window():
    release = asyncio.Event()

    async def hesitant(requests: AsyncIterator[bytes], _: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        await release.wait()
        async for _request in requests:
            yield b"got"

    async def send_many(call: GrpcCall) -> None:
        for _ in range(40):
            await call.send(bytes(500_000))

    received: list[bytes] = []
    async with serving(hesitant) as target:
        call = await GrpcCall.open(target, PATH, [], received.append)
        sending = asyncio.create_task(send_many(call))
        done, _ = await asyncio.wait([sending], timeout=0.3)
        assert not done
        release.set()
        await sending
        call.half_close()
        assert (await call.ended).code == 0
    assert received == [b"got"] * 40


async def test_a_status_with_its_message_and_metadata():
    async def refuse(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "voll: 100 %", (("retry-after", "5"),))
        yield b""

    async with serving(refuse) as target:
        call = await GrpcCall.open(target, PATH, [], lambda _: None)
        status = await call.ended
    assert (status.code, status.message) == (8, "voll: 100 %")
    assert status.metadata["retry-after"] == "5"


async def test_metadata_arrives():
    async def show(requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        metadata = dict(context.invocation_metadata())
        yield str(metadata["authorization"]).encode()

    received: list[bytes] = []
    async with serving(show) as target:
        call = await GrpcCall.open(target, PATH, [("authorization", "Bearer k")], received.append)
        await call.ended
    assert received == [b"Bearer k"]


async def test_an_unknown_method_has_its_status():
    async with serving(echo) as target:
        call = await GrpcCall.open(target, "/test.Echo/Other", [], lambda _: None)
        assert (await call.ended).code == grpc.StatusCode.UNIMPLEMENTED.value[0]


async def test_a_closed_port():
    async with serving(echo) as target:
        pass
    with pytest.raises(CallFailed, match="cannot connect"):
        await GrpcCall.open(target, PATH, [], lambda _: None)


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        ([], CallFailed),
        ([b"HTTP/1.1 400 Bad Request\r\n\r\n"], CallFailed),
        ([frame(4, 0, 0, b"")], CallFailed),
        ([frame(4, 0, 0, b"odd")], Malformed),
        ([frame(3, 0, 1, (8).to_bytes(4, "big"))], CallFailed),
        ([frame(7, 0, 0, bytes(8) + b"too many pings")], CallFailed),
        ([frame(1, 4, 1, b"\xff\xff\xff\xff\xff\xff\xff")], Malformed),
        ([frame(1, 5, 1, b"\x88")], Malformed),
        ([frame(1, 4, 1, b"\x8d")], CallFailed),
        ([frame(1, 4, 1, b"\x88"), frame(0, 0, 1, b"\1\0\0\0\0")], Malformed),
        ([frame(1, 4, 1, b"\x88"), frame(0, 1, 1, b"")], Malformed),
        ([frame(0, 8, 1, b"")], Malformed),
    ],
)
async def test_a_response_that_is_not_grpc_is_an_error(sent: list[bytes], error: type[CallFailed]):
    async with server_sending(*sent) as target:
        call = await GrpcCall.open(target, PATH, [], lambda _: None)
        with pytest.raises(CallFailed) as raised:
            async with asyncio.timeout(10):
                await call.ended
    assert type(raised.value) is error


async def test_pings_are_answered_and_frames_may_come_in_any_pieces():
    answered = asyncio.get_running_loop().create_future()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for byte in frame(4, 0, 0, b"") + frame(6, 0, 0, b"12345678"):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        await reader.readuntil(frame(6, 1, 0, b"12345678"))
        answered.set_result(None)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        target = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await GrpcCall.open(target, PATH, [], lambda _: None)
        async with asyncio.timeout(10):
            await answered
