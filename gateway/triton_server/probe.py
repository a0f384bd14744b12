"""Asks whether a Triton is there and ready to serve."""

from __future__ import annotations

import http.client
import socket

TIMEOUT_S = 2.0


def is_ready(address: str) -> bool:
    """Whether every model of the Triton at `address` (HOST:PORT, HTTP) is ready; False too where nothing listens."""
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def listens(host: str, port: int) -> bool:
    """Whether a TCP connection to `port` is accepted."""
    try:
        socket.create_connection((host, port), timeout=TIMEOUT_S).close()
    except OSError:
        return False
    return True
