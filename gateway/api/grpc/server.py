"""The gRPC server: the service of the .proto, health checking and reflection, on a separate port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from gateway.api.access import key_holder
from gateway.api.grpc.converse import converse
from gateway.api.grpc.health import MAX_RPCS, Health, KeylessRpcs, Reflection
from gateway.api.grpc.health import SERVICE as HEALTH_SERVICE
from gateway.api.grpc.params import parser
from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.api.grpc.respond import respond, respond_stream
from gateway.api.grpc.status import error_status, request_metadata
from gateway.api.sending import send_all
from gateway.certificate import grpc_credentials
from gateway.errors import GatewayError
from gateway.session.caller import Caller
from gateway.session.runtime import Runtime
from gateway.settings import TlsFiles
from gateway.telemetry.metrics import Api
from gateway.telemetry.requests import begin_request

SERVICE: str = pb.DESCRIPTOR.services_by_name["PersonaPlex"].full_name

KEEPALIVE_MS = 10_000
_IDLE_MS = 300_000
# RPCs beyond the slots: RPCs about to be rejected, and more than MAX_RPCS, so that RPCs without a key cannot block the
# others.
_RPCS_WITHOUT_SLOT = 256
# Per connection, which may be a proxy with all RPCs of a pod.
_STREAMS_WITHOUT_SLOT = 128
# Before an error status is sent, the handler waits so many seconds for the request message, so that a small one has
# arrived.
_SMALL_MESSAGE_S = 0.05
# Allowance for the protobuf fields besides the recording.
_ENVELOPE_BYTES = 2**20
# For responses in flight when the server closes; conversations have ended by then.
_GRACE_S = 1.0


class GrpcServer:
    """Serve the runtime over gRPC, in the event loop that `start` runs in."""

    def __init__(self, runtime: Runtime) -> None:
        self.port = 0
        """The TCP port, once started."""
        self._runtime = runtime
        self._server: grpc.aio.Server | None = None
        self._at_work: set[asyncio.Task[object]] = set()

    async def start(self, host: str, port: int, tls: TlsFiles | None = None) -> None:
        """Start listening; port 0 selects a free one. Raises CannotListen."""
        server = grpc.aio.server(
            options=_options(self._runtime),
            maximum_concurrent_rpcs=self._runtime.manifest.slots + _RPCS_WITHOUT_SLOT,
        )
        server.add_generic_rpc_handlers((_handlers(self._runtime, self._at_work),))
        rpcs = KeylessRpcs(MAX_RPCS, self._runtime.settings.retry_after)
        health = Health(self._runtime, (SERVICE,), rpcs)
        server.add_generic_rpc_handlers((_health_handlers(self._runtime, health),))
        services = (SERVICE, HEALTH_SERVICE, reflection.SERVICE_NAME)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(Reflection(services, rpcs), server)
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if tls is None:
                self.port = server.add_insecure_port(address)
            else:
                self.port = server.add_secure_port(address, grpc_credentials(tls))
        except (RuntimeError, OSError) as error:
            raise CannotListen(f"cannot listen on {address} for gRPC: {error}") from None
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Accept no more RPCs, and end those in progress."""
        if self._server is not None:
            await self._server.stop(_GRACE_S)
            self._server = None
        # gRPC does not wait for handlers whose clients disconnected. They may still be releasing their slots.
        if self._at_work:
            await asyncio.wait(self._at_work, timeout=_GRACE_S)


class CannotListen(GatewayError):  # noqa: N818 (as in gateway.errors)
    """The port is in use, or the certificate cannot be read."""


def _handlers(runtime: Runtime, at_work: set[asyncio.Task[object]]) -> grpc.GenericRpcHandler:
    """Return the three methods. Each checks the API key, reports errors as statuses and adds its task to `at_work`."""

    @asynccontextmanager
    async def authenticated(context: grpc.aio.ServicerContext) -> AsyncIterator[Caller]:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 (a handler runs in one)
        at_work.add(task)
        task.add_done_callback(at_work.discard)
        headers = {name: _text(value) for name, value in context.invocation_metadata() or ()}
        begin_request(headers)
        context.set_trailing_metadata(request_metadata())
        async with error_status(context, runtime.settings.retry_after):
            try:
                yield Caller(Api.GRPC, key_holder(runtime.keys, headers))
            except GatewayError:
                # A client that gets its status while it still sends a small message may report INTERNAL instead.
                with suppress(TimeoutError, grpc.aio.BaseError, grpc.aio.UsageError):
                    async with asyncio.timeout(_SMALL_MESSAGE_S):
                        await context.read()
                raise

    async def on_respond(_messages: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> pb.RespondResponse:
        async with authenticated(context) as caller:
            return await respond(runtime, context, caller)

    async def on_respond_stream(_messages: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> None:
        async with authenticated(context) as caller:
            await send_all(respond_stream(runtime, context, caller), context.write, runtime)

    async def on_converse(_messages: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> None:
        async with authenticated(context) as caller:
            await converse(runtime, context, caller)

    request, response = parser(pb.RespondRequest), pb.RespondResponse.SerializeToString
    chunk = pb.RespondChunk.SerializeToString
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            # Unary for clients. A stream handler runs before the message is read, so it can reject it unread.
            "Respond": grpc.stream_unary_rpc_method_handler(on_respond, request, response),
            "RespondStream": grpc.stream_stream_rpc_method_handler(on_respond_stream, request, chunk),
            # Its handler parses and serializes, which saves two function calls per frame.
            "Converse": grpc.stream_stream_rpc_method_handler(on_converse),
        },
    )


def _health_handlers(runtime: Runtime, health: Health) -> grpc.GenericRpcHandler:
    """Return Check and Watch. Both are stream handlers, which run before the request arrives, so they can bound it."""

    async def on_check(_: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> health_pb2.HealthCheckResponse:
        async with error_status(context, runtime.settings.retry_after):
            return await health.check(context)

    async def on_watch(_: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> None:
        async with error_status(context, runtime.settings.retry_after):
            await health.watch(context)

    request, response = health_pb2.HealthCheckRequest.FromString, health_pb2.HealthCheckResponse.SerializeToString
    return grpc.method_handlers_generic_handler(
        HEALTH_SERVICE,
        {
            "Check": grpc.stream_unary_rpc_method_handler(on_check, request, response),
            "Watch": grpc.stream_stream_rpc_method_handler(on_watch, request, response),
        },
    )


def _options(runtime: Runtime) -> list[tuple[str, int]]:
    return [
        ("grpc.max_concurrent_streams", runtime.manifest.slots + _STREAMS_WITHOUT_SLOT),
        # A port in use is an error. It is not shared.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", runtime.settings.grpc_message_bytes + _ENVELOPE_BYTES),
        ("grpc.max_send_message_length", -1),
        # A client whose machine or network failed is detected within twice this, also while nothing is sent.
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_MS),
        # The default is a minute. It would replace the timeout above while the network still accepts data.
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # A connection without an RPC is closed.
        ("grpc.max_connection_idle_ms", _IDLE_MS),
        # A client with a long-lived channel connects again, and so finds new servers. RPCs in progress continue on the
        # old connection, whose grace period is unlimited by default.
        ("grpc.max_connection_age_ms", round(1000 * runtime.settings.grpc_connection_seconds)),
        # Clients may send keepalive pings this often.
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        # Buffer some seconds of audio that a client sends ahead of time, not megabytes.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 2**18),
        # Unread audio waits in the session, which counts it.
        ("grpc.http2.write_buffer_size", 8_192),
    ]


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else ""
