"""gRPC health checking and reflection, with the clients of grpcio."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from gateway.api.grpc.health import MAX_RPCS
from tests.gateway.grpc.conftest import start

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def health(channel):
    return health_pb2_grpc.HealthStub(channel)


@pytest.mark.parametrize("service", ["", "personaplex.v1.PersonaPlex"])
async def test_it_serves_when_the_models_are_ready_and_no_drain_has_begun(health, engine, runtime, service):
    runtime.readiness.period = 0
    request = health_pb2.HealthCheckRequest(service=service)
    assert (await health.Check(request)).status == SERVING
    engine.down = True
    assert (await health.Check(request)).status == NOT_SERVING
    engine.down = False
    assert (await health.Check(request)).status == SERVING
    runtime.sessions.begin_drain()
    assert (await health.Check(request)).status == NOT_SERVING


async def test_an_unknown_service_is_reported(health):
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await health.Check(health_pb2.HealthCheckRequest(service="personaplex.v2"))
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
    watch = health.Watch(health_pb2.HealthCheckRequest(service="personaplex.v2"))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


async def test_watch_sends_every_change(health, engine, runtime):
    watch = health.Watch(health_pb2.HealthCheckRequest())
    async with asyncio.timeout(10):
        assert (await watch.read()).status == SERVING
        engine.down = True
        assert (await watch.read()).status == NOT_SERVING
        engine.down = False
        assert (await watch.read()).status == SERVING
        runtime.sessions.begin_drain()
        assert (await watch.read()).status == NOT_SERVING
    watch.cancel()


async def test_reflection_lists_services_and_messages(channel):
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="personaplex.v1.PersonaPlex"),
    ]
    services, described = [answer async for answer in stub.ServerReflectionInfo(iter(requests))]
    assert {service.name for service in services.list_services_response.service} == {
        "personaplex.v1.PersonaPlex",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    pool = DescriptorPool()
    for data in described.file_descriptor_response.file_descriptor_proto:
        pool.AddSerializedFile(data)
    methods = pool.FindServiceByName("personaplex.v1.PersonaPlex").methods_by_name
    assert set(methods) == {"Respond", "RespondStream", "Converse"}


async def test_watches_beyond_the_limit_are_rejected_but_rpcs_are_not(channel, health, stub):
    watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(MAX_RPCS)]
    for watch in watches:
        assert (await watch.read()).status == SERVING
    for refused in (
        health.Watch(health_pb2.HealthCheckRequest()).read(),
        health.Check(health_pb2.HealthCheckRequest()),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as found:
            await refused
        assert found.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    call = stub.Converse()
    await call.write(start())
    assert (await call.read()).WhichOneof("message") == "ready"
    call.cancel()
    watches.pop().cancel()
    async with asyncio.timeout(5):
        while True:
            try:
                assert (await health.Check(health_pb2.HealthCheckRequest())).status == SERVING
                break
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.02)
    for watch in watches:
        watch.cancel()


async def test_checks_that_send_no_request_are_ended(channel, monkeypatch):
    monkeypatch.setattr("gateway.api.grpc.health._REQUEST_S", 0.1)
    call = channel.stream_unary("/grpc.health.v1.Health/Check")()
    assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
