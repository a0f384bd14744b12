"""Options of a gRPC channel to several servers: balance over all of them, and repeat refused calls on another one.

    target = "dns:///calls-personaplex-pods.voice.svc.cluster.local:8999"
    async with grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS) as channel:
        calls = PersonaPlexStub(channel)
        call = await begin(lambda: calls.Converse(messages()), rounds=4)

gRPC repeats a call at most four times, whatever the service config says. So one round of attempts reaches five servers;
`begin` adds rounds for more.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, TypeVar

import grpc

Call = TypeVar("Call", bound=Any)

RETRIABLE = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
"""Statuses of a full and of a draining or unreachable server, which another server may not have."""

ATTEMPTS = 5
"""Attempts per call; gRPC allows no more."""

SERVICE_CONFIG: dict[str, Any] = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": "personaplex.v1.PersonaPlex"}],
            "retryPolicy": {
                "maxAttempts": ATTEMPTS,
                # With 1 ms, some calls were never answered in tests with grpcio 1.85; the cause is not known.
                "initialBackoff": "0.005s",
                "maxBackoff": "0.005s",
                "backoffMultiplier": 1,
                "retryableStatusCodes": [code.name for code in RETRIABLE],
            },
        }
    ],
}
"""https://github.com/grpc/grpc/blob/master/doc/service_config.md, the same for every language."""

CHANNEL_OPTIONS: list[tuple[str, str | int]] = [
    ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
    ("grpc.enable_retries", 1),
    # After the end of a connection, look up the servers again this soon. The default is 30 s.
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    # A server that came back is used again this soon.
    ("grpc.max_reconnect_backoff_ms", 1_000),
]


async def begin(call: Callable[[], Call], rounds: int) -> Call:
    """Begin a call; repeat it while every server that was tried refuses it. Return the last one, refused or not.

    Args:
        call: starts a call of a stub, and sends its first message. Further messages must wait until this function has
            returned: a client that is sending when the status arrives may report INTERNAL instead.
        rounds: rounds of ATTEMPTS attempts; 2 × servers / ATTEMPTS reach each server also while other calls begin.
    """
    for _ in range(rounds):
        begun = call()
        await _answered(begun)
        if not begun.done() or await begun.code() not in RETRIABLE:
            break
    return begun


async def _answered(call: Any) -> None:
    """Wait for the initial metadata, or for the status if they are empty: the call is refused, or complete."""
    if not call.done():
        done = asyncio.Event()
        call.add_done_callback(lambda _: done.set())
        accepted, status = asyncio.ensure_future(call.initial_metadata()), asyncio.ensure_future(done.wait())
        await asyncio.wait((accepted, status), return_when=asyncio.FIRST_COMPLETED)
        if not status.done():
            metadata: Any = (await asyncio.gather(accepted, return_exceptions=True))[0]
            if isinstance(metadata, BaseException) or not metadata:
                await status
        for wait in (accepted, status):
            wait.cancel()
        await asyncio.gather(accepted, status, return_exceptions=True)
