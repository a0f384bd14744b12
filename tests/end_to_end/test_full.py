"""A session beyond the slots, on each API: refused at once, accepted when another has ended."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from contextlib import ExitStack

import grpc
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from gateway.api.grpc.personaplex.v1 import personaplex_pb2 as pb
from gateway.api.grpc.personaplex.v1 import personaplex_pb2_grpc
from tests.end_to_end.conftest import Service, wav
from tests.end_to_end.vanishing import NOISE

SLOTS = 8


def by_respond(service: Service, stream: bool = False) -> bool:
    body = {"audio": base64.b64encode(wav(NOISE[0])).decode(), "max_steps": 2, "stream": stream}
    with service.client() as client:
        response = client.post("/v1/respond", json=body)
    if response.status_code == 503:
        assert response.json()["type"] == "urn:personaplex:at-capacity"
        assert int(response.headers["Retry-After"]) > 0
    return response.status_code == 200


def by_stream(service: Service) -> bool:
    return by_respond(service, stream=True)


def by_websocket(service: Service, path: str) -> bool:
    with connect(service.url.replace("http", "ws", 1) + path, compression=None, proxy=None) as client:
        if "converse" in path:
            client.send('{"type": "start"}')
        try:
            # The handshake and the first audio, or ready and the first frame; or an error and the close.
            for _ in range(2):
                client.recv(timeout=10)
        except ConnectionClosed:
            assert client.close_code == 1013
            return False
    return True


def by_converse(service: Service) -> bool:
    return by_websocket(service, "/v1/converse")


def by_chat(service: Service) -> bool:
    return by_websocket(service, "/api/chat")


def by_grpc(service: Service) -> bool:
    start = pb.ConverseRequest(start=pb.Start())
    request = pb.RespondRequest(audio=wav(NOISE[0]), max_steps=2)
    with grpc.insecure_channel(service.grpc_target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = personaplex_pb2_grpc.PersonaPlexStub(channel)
        accepted = []
        for call in (
            lambda: next(stub.Converse(iter([start]))),
            lambda: stub.Respond(request),
            lambda: next(stub.RespondStream(request)),
        ):
            try:
                call()
                accepted.append(True)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                accepted.append(False)
            if accepted[-1]:
                service.wait_until_free(but=SLOTS - 1)
    assert len(set(accepted)) == 1
    return accepted[0]


@pytest.mark.parametrize("connects", [by_respond, by_stream, by_converse, by_chat, by_grpc])
def test_a_session_beyond_the_slots_is_refused_at_once_and_accepted_later(
    tiny_service: Service, connects: Callable[[Service], bool]
) -> None:
    service = tiny_service
    url = service.url.replace("http", "ws", 1) + "/v1/converse"
    with ExitStack() as sockets:
        for _ in range(SLOTS):
            socket = sockets.enter_context(connect(url, compression=None, proxy=None))
            socket.send('{"type": "start"}')
            assert '"ready"' in socket.recv(timeout=10)
        began = time.monotonic()
        assert not connects(service)
        took = time.monotonic() - began
        print(f"{connects.__name__}: refused in {1000 * took:.0f} ms")
        assert took < 0.5
        socket.send('{"type": "end"}')
        with pytest.raises(ConnectionClosed):  # noqa: PT012
            while True:
                socket.recv(timeout=10)
        assert connects(service)
    service.wait_until_free()
