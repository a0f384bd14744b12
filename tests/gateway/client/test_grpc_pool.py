"""Calls over a channel to several servers."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from gateway.client.grpc_pool import begin


@pytest.mark.parametrize("rounds", [1, 3])
async def test_a_call_has_been_answered_when_it_is_returned(rounds: int) -> None:
    """Also in the last round: a client that sends when the status arrives sees INTERNAL instead."""
    calls = 0

    async def refuse(messages, context) -> None:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.05)
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")

    server = grpc.aio.server()
    handlers = {"Call": grpc.stream_stream_rpc_method_handler(refuse)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Service", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_retries", 0)]) as channel:
            call = await begin(lambda: channel.stream_stream("/Service/Call")(), rounds)
            assert call.done()
            assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert calls == rounds
    finally:
        await server.stop(None)
