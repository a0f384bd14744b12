"""Asks whether a Triton is there and ready to serve."""

from __future__ import annotations

import socket

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc


def is_ready(url: str) -> bool:
    """Whether every model of the Triton at `url` (HOST:PORT, gRPC) is ready; False too where nothing listens."""
    host, _, port = url.rpartition(":")
    # A gRPC channel backs off for seconds after a refused connection: ask for one only once somebody listens.
    try:
        socket.create_connection((host, int(port)), timeout=2.0).close()
    except OSError:
        return False
    with grpc.insecure_channel(url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            return bool(stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=2.0).ready)
        except grpc.RpcError:
            return False
